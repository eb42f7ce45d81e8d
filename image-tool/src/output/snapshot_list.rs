//! The list of internal snapshots, as `info` and `snapshot -l` print it.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use qcow::SnapshotInfo;

use super::json::{Object, Value};
use super::size;

/// The user's time zone, which must be read before the process confines itself.
pub(crate) struct LocalTime(TimeZone);

impl LocalTime {
    pub(crate) fn new() -> Self {
        Self(TimeZone::system())
    }

    fn format(&self, seconds: u32) -> String {
        match Timestamp::from_second(i64::from(seconds)) {
            Ok(time) => time
                .to_zoned(self.0.clone())
                .strftime("%Y-%m-%d %H:%M:%S")
                .to_string(),
            Err(_) => String::new(),
        }
    }
}

/// The table for people.
pub(crate) fn table(snapshots: &[SnapshotInfo], local: &LocalTime) -> String {
    let mut text = row("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT");
    for snapshot in snapshots {
        let seconds = snapshot.vm_clock_nsec / 1_000_000_000;
        let clock = format!(
            "{:04}:{:02}:{:02}.{:03}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            snapshot.vm_clock_nsec / 1_000_000 % 1000
        );
        let icount = snapshot
            .icount
            .map_or("--".to_owned(), |icount| icount.to_string());
        text.push_str(&row(
            &snapshot.id,
            &snapshot.name,
            &size::human(snapshot.vm_state_size),
            &local.format(snapshot.date_sec),
            &clock,
            &icount,
        ));
    }
    text
}

#[allow(clippy::too_many_arguments, reason = "the columns of the table")]
fn row(id: &str, tag: &str, size: &str, date: &str, clock: &str, icount: &str) -> String {
    format!("{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}\n")
}

/// The list for `--output=json`.
pub(crate) fn json(snapshots: &[SnapshotInfo]) -> Vec<Value> {
    snapshots
        .iter()
        .map(|snapshot| {
            Object::new()
                .with("id", snapshot.id.as_str())
                .with("name", snapshot.name.as_str())
                .with("vm-state-size", snapshot.vm_state_size)
                .with("date-sec", snapshot.date_sec)
                .with("date-nsec", snapshot.date_nsec)
                .with("vm-clock-sec", snapshot.vm_clock_nsec / 1_000_000_000)
                .with("vm-clock-nsec", snapshot.vm_clock_nsec % 1_000_000_000)
                .with_some("icount", snapshot.icount)
                .into()
        })
        .collect()
}
