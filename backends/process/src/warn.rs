//! Warnings: one function for what the user must know although the program goes on. A guest or a frontend can cause
//! many warnings, so their rate is limited.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::stderr;

/// How many lines can be written at once.
const BURST: u32 = 16;
/// After that, one line in each of these spans.
const SPAN: Duration = Duration::from_secs(10);

static GATE: Mutex<Gate> = Mutex::new(Gate::new());

/// Writes one `warning:` line to standard error. This never waits and never panics, whatever standard error is: a line
/// that nobody reads is left out. At most 16 lines are written at once, then one in ten seconds, which says how many
/// were left out.
pub fn warn(message: &str) {
    let mut gate = GATE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(left_out) = gate.pass(Instant::now()) else {
        return;
    };
    let written = match left_out {
        0 => stderr::write_line("warning", message),
        _ => stderr::write_line(
            "warning",
            &format!("{message} ({left_out} other warnings were left out)"),
        ),
    };
    if !written {
        gate.left_out = left_out.saturating_add(1);
    }
}

/// Writes one `label: message` line that the user asked for, by `--verbose` for example. Like [`warn`], but without a
/// limit.
pub fn say(label: &str, message: &str) {
    stderr::write_line(label, message);
}

/// A token bucket of lines.
struct Gate {
    used: u32,
    since: Option<Instant>,
    left_out: u64,
}

impl Gate {
    const fn new() -> Self {
        Self {
            used: 0,
            since: None,
            left_out: 0,
        }
    }

    /// Returns how many lines were left out before this one if it may be written at `now`; else `None`.
    fn pass(&mut self, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        let spans = now.saturating_duration_since(since).as_nanos() / SPAN.as_nanos();
        let spans = u32::try_from(spans).unwrap_or(u32::MAX);
        self.used = self.used.saturating_sub(spans);
        self.since = since.checked_add(SPAN.saturating_mul(spans)).or(Some(now));
        if self.used == BURST {
            self.left_out += 1;
            return None;
        }
        self.used += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted_and_time_opens_the_gate_again() {
        let mut gate = Gate::new();
        let start = Instant::now();
        let passed = (0..1000).filter(|_| gate.pass(start).is_some()).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(gate.pass(start + SPAN / 2), None);
        assert_eq!(gate.pass(start + SPAN), Some(1000 - u64::from(BURST) + 1));
        assert_eq!(gate.pass(start + SPAN), None);
        let late = start + SPAN * 1000;
        assert_eq!(gate.pass(late), Some(1));
        let passed = (0..1000).filter(|_| gate.pass(late).is_some()).count();
        assert_eq!(passed, BURST as usize - 1);
    }
}
