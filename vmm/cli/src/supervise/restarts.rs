//! When a process that has ended is started again.

use std::time::{Duration, Instant};

/// How long the monitor's end may come after that of a backend with status 0. Without it, the backend has failed.
const SETTLE: Duration = Duration::from_secs(2);
/// The longest pause before a process that keeps dying is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A process that has been ready for so long is stable: its earlier deaths no longer count.
const STABLE: Duration = Duration::from_secs(60);

/// The restarts of one process.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    count: u32,
    /// When the running process got ready.
    working_since: Option<Instant>,
}

impl Restarts {
    /// How often the process was started again, since it was last stable.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// The process is ready.
    pub(super) fn works(&mut self, now: Instant) {
        self.working_since = Some(now);
    }

    /// When to start a process again that ends now: at once after its first death, and after growing pauses if it keeps
    /// dying.
    pub(super) fn after(&mut self, ended_well: bool, now: Instant) -> Instant {
        let since = self.working_since.take();
        if since.is_some_and(|since| now.saturating_duration_since(since) >= STABLE) {
            self.count = 0;
        }
        let pause = match (ended_well, self.count) {
            (true, _) => SETTLE,
            (false, 0) => Duration::ZERO,
            (false, count) => {
                let doubled = Duration::from_millis(50).saturating_mul(1 << count.min(8));
                doubled.min(LONGEST_PAUSE)
            }
        };
        self.count = self.count.saturating_add(1);
        now + pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pauses of a process that dies again and again, each time after it has worked for `life`.
    fn pauses(restarts: &mut Restarts, deaths: usize, life: Duration) -> Vec<Duration> {
        let mut now = Instant::now();
        let mut die = |_| {
            restarts.works(now);
            now += life;
            let again = restarts.after(false, now);
            let pause = again - now;
            now = again;
            pause
        };
        (0..deaths).map(&mut die).collect()
    }

    #[test]
    fn the_first_restart_is_at_once_and_later_ones_are_bounded() {
        let pauses = pauses(&mut Restarts::default(), 100, Duration::from_secs(1));
        assert_eq!(pauses[0], Duration::ZERO);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(pauses[1] > Duration::ZERO && pauses[1] < pauses[3]);
        assert_eq!(pauses[99], LONGEST_PAUSE);
    }

    #[test]
    fn a_process_that_was_well_for_long_is_started_at_once() {
        let mut restarts = Restarts::default();
        assert!(
            pauses(&mut restarts, 10, STABLE)
                .iter()
                .all(Duration::is_zero)
        );
        let short = pauses(&mut restarts, 10, STABLE - Duration::from_millis(1));
        assert_eq!(short[9], LONGEST_PAUSE);
        assert_eq!(pauses(&mut restarts, 1, STABLE), [Duration::ZERO]);
    }

    #[test]
    fn one_that_never_works_is_not_well_however_long_it_takes() {
        let (mut restarts, start) = (Restarts::default(), Instant::now());
        let mut now = start;
        for _ in 0..10 {
            now = restarts.after(false, now + STABLE);
        }
        assert_eq!(restarts.after(false, now), now + LONGEST_PAUSE);
    }

    #[test]
    fn one_that_ended_well_is_given_time_for_its_monitor() {
        let now = Instant::now();
        assert_eq!(Restarts::default().after(true, now), now + SETTLE);
    }
}
