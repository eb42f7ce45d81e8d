//! Locks on ranges of the disk, which keep apart requests that touch the same clusters.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
struct Held {
    range: Range<u64>,
    exclusive: bool,
    id: u64,
}

#[derive(Debug, Default)]
struct State {
    held: Vec<Held>,
    next_id: u64,
    /// How many wait for a range.
    waiting: usize,
}

impl State {
    fn is_free(&self, range: &Range<u64>, exclusive: bool) -> bool {
        let overlaps = |held: &Held| held.range.start < range.end && range.start < held.range.end;
        !self
            .held
            .iter()
            .any(|held| (exclusive || held.exclusive) && overlaps(held))
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    released: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ranges in use.
#[derive(Debug, Default)]
pub(crate) struct RangeLock(Arc<Shared>);

/// A range in use; it is released when this is dropped, by whatever thread.
#[derive(Debug)]
pub(crate) struct RangeGuard {
    shared: Arc<Shared>,
    id: u64,
}

impl RangeLock {
    /// For requests that rely on where clusters are: any number at once.
    pub(crate) fn shared(&self, range: Range<u64>) -> RangeGuard {
        self.acquire(range, false)
    }

    /// As [`RangeLock::shared`], without waiting: `None` if another request has the range exclusively.
    pub(crate) fn try_shared(&self, range: Range<u64>) -> Option<RangeGuard> {
        let state = self.0.state();
        state
            .is_free(&range, false)
            .then(|| self.hold(state, range, false))
    }

    /// For requests that change where clusters are: one at a time.
    pub(crate) fn exclusive(&self, range: Range<u64>) -> RangeGuard {
        self.acquire(range, true)
    }

    fn acquire(&self, range: Range<u64>, exclusive: bool) -> RangeGuard {
        let mut state = self.0.state();
        while !state.is_free(&range, exclusive) {
            state.waiting += 1;
            state = self
                .0
                .released
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        self.hold(state, range, exclusive)
    }

    fn hold(
        &self,
        mut state: MutexGuard<'_, State>,
        range: Range<u64>,
        exclusive: bool,
    ) -> RangeGuard {
        let id = state.next_id;
        state.next_id += 1;
        state.held.push(Held {
            range,
            exclusive,
            id,
        });
        RangeGuard {
            shared: Arc::clone(&self.0),
            id,
        }
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if let Some(place) = state.held.iter().position(|held| held.id == self.id) {
            state.held.swap_remove(place);
        }
        // Notifying nobody would still be a system call.
        let is_awaited = state.waiting > 0;
        drop(state);
        if is_awaited {
            self.shared.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_shared_or_somebodys_own() {
        let lock = RangeLock::default();
        let reader = lock.try_shared(0..10);
        assert!(lock.try_shared(5..15).is_some());
        drop(reader);
        let writer = lock.exclusive(0..10);
        assert!(lock.try_shared(9..20).is_none());
        assert!(lock.try_shared(10..20).is_some());
        std::thread::spawn(move || drop(writer)).join().unwrap();
        assert!(lock.try_shared(9..20).is_some());
    }
}
