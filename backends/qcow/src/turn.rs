//! Turns at what may be done by one at a time, and that is done once for all who wait for it: writing tables, syncing a file.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    busy: bool,
    /// The number of the latest turn.
    latest: u64,
    /// The number of the latest turn in which all there was at its beginning got written.
    written: u64,
    #[cfg(test)]
    waiting: usize,
}

/// Who has the turn.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    state: Mutex<State>,
    over: Condvar,
}

impl Turns {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, mut state: MutexGuard<'_, State>) -> Turn<'_> {
        state.busy = true;
        state.latest += 1;
        Turn {
            turns: self,
            number: state.latest,
        }
    }

    fn wait<'a>(
        &self,
        #[cfg_attr(not(test), expect(unused_mut))] mut state: MutexGuard<'a, State>,
    ) -> MutexGuard<'a, State> {
        #[cfg(test)]
        {
            state.waiting += 1;
        }
        self.over
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn.
    pub(crate) fn take(&self) -> Turn<'_> {
        let mut state = self.state();
        while state.busy {
            state = self.wait(state);
        }
        self.start(state)
    }

    /// Waits for a turn to write everything; `None` if somebody else had one meanwhile that began after this was asked, and did so.
    pub(crate) fn take_unless_written(&self) -> Option<Turn<'_>> {
        let mut state = self.state();
        let needed = state.latest + 1;
        loop {
            if state.written >= needed {
                return None;
            }
            if !state.busy {
                return Some(self.start(state));
            }
            state = self.wait(state);
        }
    }

    /// Takes a turn, if nobody has one, that is over when [`Turns::end`] is called with its number.
    pub(crate) fn begin_if_idle(&self) -> Option<u64> {
        let state = self.state();
        // The guard is what ends a turn.
        (!state.busy).then(|| std::mem::ManuallyDrop::new(self.start(state)).number)
    }

    /// Ends a turn; with `written`, everything there was when it began is on the medium.
    pub(crate) fn end(&self, number: u64, written: bool) {
        let mut state = self.state();
        if written {
            state.written = number;
        }
        state.busy = false;
        drop(state);
        self.over.notify_all();
    }

    /// Whether nobody has a turn, and `holds` then holds.
    pub(crate) fn is_idle_and(&self, holds: impl FnOnce() -> bool) -> bool {
        let state = self.state();
        !state.busy && holds()
    }
}

/// A turn; it is over when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    number: u64,
}

impl Turn<'_> {
    /// Everything there was when the turn began is on the medium.
    pub(crate) fn all_written(self) {
        self.turns.state().written = self.number;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.state().busy = false;
        self.turns.over.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `threads` that ask during somebody's turn get one of their own after it.
    fn turns_of(threads: usize, first_writes: bool) -> usize {
        let turns = Turns::default();
        let first = turns.take();
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..threads)
                .map(|_| scope.spawn(|| turns.take_unless_written().map(Turn::all_written)))
                .collect();
            while turns.state().waiting < threads {
                std::thread::yield_now();
            }
            if first_writes {
                first.all_written();
            } else {
                drop(first);
            }
            asking
                .into_iter()
                .filter_map(|thread| thread.join().unwrap())
                .count()
        })
    }

    #[test]
    fn a_turn_that_began_before_the_question_is_no_answer() {
        assert_eq!(turns_of(1, true), 1);
    }

    #[test]
    fn several_that_wait_are_served_by_one() {
        assert_eq!(turns_of(8, false), 1);
    }

    #[test]
    fn a_turn_that_failed_serves_nobody() {
        let turns = Turns::default();
        let needed = turns.take_unless_written().map(drop);
        assert!(needed.is_some() && turns.take_unless_written().is_some());
    }
}
