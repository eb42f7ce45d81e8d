//! Locks on ranges of the disk, so that requests of several threads that touch the same clusters do not get in each other's way.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

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
}

/// The ranges in use.
#[derive(Debug, Default)]
pub(crate) struct RangeLock {
    state: Mutex<State>,
    released: Condvar,
}

/// A range in use; it is released when this is dropped.
#[derive(Debug)]
pub(crate) struct RangeGuard<'a> {
    lock: &'a RangeLock,
    id: u64,
}

impl RangeLock {
    /// For requests that rely on where clusters are: any number at once.
    pub(crate) fn shared(&self, range: Range<u64>) -> RangeGuard<'_> {
        self.acquire(range, false)
    }

    /// For requests that change where clusters are: alone.
    pub(crate) fn exclusive(&self, range: Range<u64>) -> RangeGuard<'_> {
        self.acquire(range, true)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acquire(&self, range: Range<u64>, exclusive: bool) -> RangeGuard<'_> {
        let mut state = self.state();
        let conflicts = |state: &mut State| {
            let overlaps =
                |held: &Held| held.range.start < range.end && range.start < held.range.end;
            state
                .held
                .iter()
                .any(|held| (exclusive || held.exclusive) && overlaps(held))
        };
        while conflicts(&mut state) {
            state = self
                .released
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let id = state.next_id;
        state.next_id += 1;
        state.held.push(Held {
            range,
            exclusive,
            id,
        });
        RangeGuard { lock: self, id }
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        self.lock.state().held.retain(|held| held.id != self.id);
        self.lock.released.notify_all();
    }
}
