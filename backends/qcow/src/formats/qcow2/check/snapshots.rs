//! The snapshot table, and the trees it leads to.

use crate::error::{Error, Result, TableFault};
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::layout::geometry::MAX_L1_BYTES;
use crate::formats::qcow2::layout::geometry::MAX_SNAPSHOTS;
use crate::formats::qcow2::layout::snapshot_table::{Reading, SnapshotTable};
use crate::report::Repair;

impl Check<'_> {
    /// Reads the table. Snapshots beyond what an image may have are dropped if that is wanted; what is wrong with
    /// single entries is put right last, by whoever can allocate clusters.
    pub(in crate::formats::qcow2) fn read_snapshot_table(&mut self) -> Result<()> {
        let all = self.repair == Repair::All;
        let mut overhanging = 0;
        if all && self.header.snapshots > MAX_SNAPSHOTS {
            overhanging = u64::from(self.header.snapshots - MAX_SNAPSHOTS);
            self.report(format!("Discarding {overhanging} overhanging snapshots"));
            self.header.snapshots = MAX_SNAPSHOTS;
        }
        let reading = if all { Reading::Mend } else { Reading::Strict };
        let table = match self.header.check_snapshot_table() {
            Ok(()) => SnapshotTable::read(self.storage, &self.header, reading).map_err(|error| {
                let message = format!("ERROR failed to read the snapshot table: {error}");
                (message, TableFault::TooLarge)
            }),
            Err(fault) => {
                let hint = self.hint();
                Err((format!("ERROR snapshot table {fault}{hint}"), fault))
            }
        };
        let table = table.map_err(|(message, fault)| {
            self.result.check_errors += 1;
            self.report(message);
            Error::corrupt(match fault {
                TableFault::Misplaced => "Invalid argument",
                TableFault::TooLarge => "File too large",
            })
        })?;
        for message in &table.findings {
            self.report(message.clone());
        }
        overhanging += table.overhanging;
        if overhanging > 0 {
            // What only they used leaks until it is counted.
            self.header.snapshots = table.entries.len() as u32;
            self.write_header()?;
            self.result.corruptions_fixed += overhanging;
        }
        self.incomplete = table.cut;
        (self.snapshots, self.snapshot_bytes) = (table.entries, table.bytes);
        self.check_entries(all);
        Ok(())
    }

    /// What can be done about more snapshots than an image may have.
    fn hint(&self) -> String {
        match self.header.snapshots.checked_sub(MAX_SNAPSHOTS) {
            None | Some(0) => String::new(),
            Some(overhanging) => format!(
                "\nYou can force-remove all {overhanging} overhanging snapshots with qemu-img check -r all"
            ),
        }
    }

    /// Version 3 wants to know the size of each snapshot's disk.
    fn check_entries(&mut self, all: bool) {
        if self.header.version < 3 {
            return;
        }
        let word = if all { "Repairing" } else { "ERROR" };
        let incomplete: Vec<usize> = (0..self.snapshots.len())
            .filter(|index| {
                self.snapshots
                    .get(*index)
                    .is_some_and(|entry| entry.info.disk_size.is_none())
            })
            .collect();
        for index in incomplete {
            self.incomplete += 1;
            self.report(format!("{word} snapshot table entry {index} is incomplete"));
        }
    }

    pub(in crate::formats::qcow2) fn count_snapshots(&mut self, fix: bool) -> Result<()> {
        if self.header.external_data() && !self.snapshots.is_empty() {
            let count = self.snapshots.len();
            self.corruption(format!("ERROR {count} snapshots in image with data file"));
        }
        for index in 0..self.snapshots.len() {
            let Some(snapshot) = self.snapshots.get(index) else {
                break;
            };
            let (l1, entries) = (snapshot.l1_offset, u64::from(snapshot.l1_size));
            let name = format!("snapshot {} ({})", snapshot.info.id, snapshot.info.name);
            if !l1.is_multiple_of(self.geometry.cluster_size()) {
                self.corruption(format!(
                    "ERROR {name} l1_offset={l1:#x}: L1 table is not cluster aligned; snapshot table entry corrupted"
                ));
            } else if entries * 8 > MAX_L1_BYTES {
                self.corruption(format!(
                    "ERROR {name} l1_size={entries:#x}: L1 table is too large; snapshot table entry corrupted"
                ));
            } else {
                self.count_tree(l1, entries, false, fix)?;
            }
        }
        Ok(())
    }
}
