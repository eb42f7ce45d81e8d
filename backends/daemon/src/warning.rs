//! Lines on standard error: what a user must know and the program survives. A guest or a frontend can bring many of them
//! about, so that there is a bound on how many get through.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines that get through at once.
const BURST: u32 = 16;
/// After these, one for each of these spans.
const SPAN: Duration = Duration::from_secs(10);

static GATE: Mutex<Gate> = Mutex::new(Gate::new());

/// One `warning:` line on standard error, which may be closed. At most 16 in a row and then one in ten seconds; those left out are
/// counted in the next that gets through.
pub fn warn(message: &str) {
    let passed = GATE
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .pass(Instant::now());
    let _ = match passed {
        None => Ok(()),
        Some(0) => writeln!(io::stderr(), "warning: {message}"),
        Some(left_out) => writeln!(
            io::stderr(),
            "warning: {message} ({left_out} other warnings were left out)"
        ),
    };
}

/// A bucket of lines, filled by time.
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

    /// Whether a line gets through at `now`, and how many were left out before it.
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
