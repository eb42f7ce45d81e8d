//! Group commit: one commit at a time, and one commit serves every thread that asked before it began. Used for writing
//! tables and for syncing a file.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    busy: bool,
    /// The number of the latest commit.
    latest: u64,
    /// The number of the latest commit that succeeded: everything that was unwritten when it began is on the medium.
    succeeded: u64,
    #[cfg(test)]
    waiting: usize,
}

/// Lets one thread commit at a time.
#[derive(Debug, Default)]
pub(crate) struct GroupCommit {
    state: Mutex<State>,
    over: Condvar,
}

impl GroupCommit {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, mut state: MutexGuard<'_, State>) -> Commit<'_> {
        state.busy = true;
        state.latest += 1;
        Commit {
            group: self,
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

    /// Begins a commit as soon as no other one is under way.
    pub(crate) fn begin(&self) -> Commit<'_> {
        let mut state = self.state();
        while state.busy {
            state = self.wait(state);
        }
        self.start(state)
    }

    /// The same, unless another thread's commit begins after this call and succeeds: then everything is written, and
    /// the result is `None`.
    pub(crate) fn begin_unless_covered(&self) -> Option<Commit<'_>> {
        let mut state = self.state();
        let needed = state.latest + 1;
        loop {
            if state.succeeded >= needed {
                return None;
            }
            if !state.busy {
                return Some(self.start(state));
            }
            state = self.wait(state);
        }
    }

    /// Begins a commit if none is under way. The caller passes its number to [`GroupCommit::end`].
    pub(crate) fn try_begin(&self) -> Option<u64> {
        let state = self.state();
        // Dropping the guard would end the commit.
        (!state.busy).then(|| std::mem::ManuallyDrop::new(self.start(state)).number)
    }

    /// Ends a commit. If it `succeeded`, everything that was unwritten when it began is on the medium.
    pub(crate) fn end(&self, number: u64, succeeded: bool) {
        let mut state = self.state();
        if succeeded {
            state.succeeded = number;
        }
        state.busy = false;
        drop(state);
        self.over.notify_all();
    }

    /// Whether no commit is under way and `holds` returns true while none can begin.
    pub(crate) fn is_idle_and(&self, holds: impl FnOnce() -> bool) -> bool {
        let state = self.state();
        !state.busy && holds()
    }
}

/// A commit under way; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Commit<'a> {
    group: &'a GroupCommit,
    number: u64,
}

impl Commit<'_> {
    /// Everything that was unwritten when the commit began is on the medium.
    pub(crate) fn succeeded(self) {
        self.group.state().succeeded = self.number;
    }
}

impl Drop for Commit<'_> {
    fn drop(&mut self) {
        self.group.state().busy = false;
        self.group.over.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `threads` that ask during another thread's commit have to commit themselves after it.
    fn commits_of(threads: usize, first_writes: bool) -> usize {
        let commits = GroupCommit::default();
        let first = commits.begin();
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..threads)
                .map(|_| scope.spawn(|| commits.begin_unless_covered().map(Commit::succeeded)))
                .collect();
            while commits.state().waiting < threads {
                std::thread::yield_now();
            }
            if first_writes {
                first.succeeded();
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
    fn a_commit_that_began_before_the_request_does_not_cover_it() {
        assert_eq!(commits_of(1, true), 1);
    }

    #[test]
    fn one_commit_covers_all_threads_that_wait() {
        assert_eq!(commits_of(8, false), 1);
    }

    #[test]
    fn a_commit_that_failed_covers_nobody() {
        let commits = GroupCommit::default();
        let needed = commits.begin_unless_covered().map(drop);
        assert!(needed.is_some() && commits.begin_unless_covered().is_some());
    }
}
