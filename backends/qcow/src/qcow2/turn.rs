//! Turns at writing tables: one at a time, and what several wait for is done once.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLockWriteGuard};

use crate::engine::Engine;

#[derive(Debug, Default)]
struct State {
    busy: bool,
    /// The number of the latest turn.
    latest: u64,
    /// The number of the latest turn in which everything there was got written.
    written: u64,
    #[cfg(test)]
    waiting: usize,
}

/// Who writes the tables of an image.
#[derive(Debug, Default)]
pub(super) struct Turns {
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
    pub(super) fn take(&self) -> Turn<'_> {
        let mut state = self.state();
        while state.busy {
            state = self.wait(state);
        }
        self.start(state)
    }

    /// Waits for a turn to write everything; `None` if somebody else had one meanwhile that began after this was asked, and did so.
    pub(super) fn take_unless_written(&self) -> Option<Turn<'_>> {
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

    /// Whether nobody has a turn, and `holds` then holds.
    pub(super) fn is_idle_and(&self, holds: impl FnOnce() -> bool) -> bool {
        let state = self.state();
        !state.busy && holds()
    }
}

/// A turn; it is over when this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    number: u64,
}

impl Turn<'_> {
    /// Everything there was when the turn began is on the medium.
    pub(super) fn all_written(self) {
        self.turns.state().written = self.number;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.state().busy = false;
        self.turns.over.notify_all();
    }
}

/// The engine, locked, while nobody writes its tables but the one who has this.
#[derive(Debug)]
pub(crate) struct Alone<'a> {
    // In this order: the turn must not be over while the engine is locked.
    pub(super) engine: RwLockWriteGuard<'a, Engine>,
    pub(super) _turn: Turn<'a>,
}

impl Deref for Alone<'_> {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl DerefMut for Alone<'_> {
    fn deref_mut(&mut self) -> &mut Engine {
        &mut self.engine
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
