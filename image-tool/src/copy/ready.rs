//! Pieces that were read and wait to be written, by one thread at a time.
//!
//! Whoever has read a piece puts it here. If nobody writes, that thread does, for as long as a piece is due; if somebody
//! does, it goes on reading, until the buffers are used up. So nobody waits for the turn of its own piece, and few have to
//! be woken.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::buffer::Buffer;
use super::plan::Piece;

/// Which pieces may be written when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// One after the other, as they follow each other in the input: clusters then lie in the order of the disk.
    Sequential,
    /// One at a time, whichever is there.
    Any,
    /// Several at the same time, each by the thread that read it: when the work is not the writing itself.
    AtOnce,
}

/// A piece and what is in it.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) piece: Piece,
    pub(super) buffer: Buffer,
    /// What of it is data, and what zeroes, with their lengths.
    pub(super) runs: Vec<(bool, usize)>,
}

#[derive(Debug)]
struct State {
    free: Vec<Buffer>,
    waiting: BTreeMap<u64, Filled>,
    /// The index of the piece that is written next.
    next: u64,
    is_written_to: bool,
    stopped: bool,
}

/// The pieces and the buffers of one copy.
#[derive(Debug)]
pub(super) struct Ready {
    state: Mutex<State>,
    /// There are free buffers, or none is needed any more.
    freed: Condvar,
    buffers: usize,
    order: Order,
}

impl Ready {
    /// With so many buffers of `len` bytes: at least one for each thread.
    pub(super) fn new(buffers: usize, len: usize, order: Order) -> Self {
        Self {
            state: Mutex::new(State {
                free: (0..buffers).map(|_| Buffer::new(len)).collect(),
                waiting: BTreeMap::new(),
                next: 0,
                is_written_to: false,
                stopped: false,
            }),
            freed: Condvar::new(),
            buffers,
            order,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for the next piece, as soon as there is some; `None` when nothing more is to be done. To be asked before
    /// the piece is taken: the piece that is due then always has its buffer.
    pub(super) fn buffer(&self) -> Option<Buffer> {
        let mut state = self.state();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(buffer) = state.free.pop() {
                return Some(buffer);
            }
            state = self
                .freed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// `filled` can be written. Gives the piece that the caller is to write now, if it is the one who writes.
    pub(super) fn put(&self, filled: Filled) -> Option<Filled> {
        if self.order == Order::AtOnce {
            return Some(filled);
        }
        let mut state = self.state();
        state.waiting.insert(filled.piece.index, filled);
        if state.is_written_to {
            return None;
        }
        state.is_written_to = true;
        self.due(state)
    }

    /// A piece was written, by the caller. Gives the next that it is to write.
    pub(super) fn written(&self, buffer: Buffer) -> Option<Filled> {
        let mut state = self.state();
        state.free.push(buffer);
        // Not for each: those who read have several to fill when they wake up.
        if state.free.len() == self.buffers.div_ceil(2) {
            self.freed.notify_all();
        }
        self.due(state)
    }

    /// The next to be written. If there is none, nobody writes any more.
    fn due(&self, mut state: MutexGuard<'_, State>) -> Option<Filled> {
        let next = state.next;
        let due = match self.order {
            _ if state.stopped => None,
            Order::Sequential => state.waiting.remove(&next),
            Order::Any | Order::AtOnce => state.waiting.pop_first().map(|(_, filled)| filled),
        };
        if due.is_some() {
            state.next += 1;
        } else {
            state.is_written_to = false;
            if !state.free.is_empty() {
                self.freed.notify_all();
            }
        }
        due
    }

    /// Nothing more is to be written.
    pub(super) fn stop(&self) {
        self.state().stopped = true;
        self.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::plan::Kind;

    fn filled(ready: &Ready, index: u64) -> Filled {
        Filled {
            piece: Piece {
                offset: index,
                len: 1,
                kind: Kind::Data,
                index,
            },
            buffer: ready.buffer().unwrap(),
            runs: Vec::new(),
        }
    }

    fn index(filled: &Filled) -> u64 {
        filled.piece.index
    }

    #[test]
    fn the_one_who_writes_gets_all_that_is_due_in_order() {
        let ready = Ready::new(4, 1, Order::Sequential);
        let [a, b, c] = [0, 1, 2].map(|index| filled(&ready, index));
        assert!(ready.put(b).is_none(), "the second is not due");
        let first = ready.put(a).unwrap();
        assert_eq!(index(&first), 0);
        assert!(ready.put(c).is_none(), "somebody writes");
        let second = ready.written(first.buffer).unwrap();
        assert_eq!(index(&second), 1);
        let third = ready.written(second.buffer).unwrap();
        assert_eq!(index(&third), 2);
        assert!(ready.written(third.buffer).is_none());
    }

    #[test]
    fn without_an_order_what_is_there_is_due() {
        let ready = Ready::new(2, 1, Order::Any);
        let [a, b] = [0, 1].map(|index| filled(&ready, index));
        let first = ready.put(b).unwrap();
        assert_eq!(index(&first), 1);
        assert!(ready.put(a).is_none());
        let second = ready.written(first.buffer).unwrap();
        assert_eq!(index(&second), 0);
        assert!(ready.written(second.buffer).is_none());
    }

    #[test]
    fn after_a_failure_nobody_gets_anything() {
        let ready = Ready::new(2, 1, Order::Sequential);
        let [a, b] = [0, 1].map(|index| filled(&ready, index));
        let first = ready.put(a).unwrap();
        ready.stop();
        assert!(ready.put(b).is_none());
        assert!(ready.written(first.buffer).is_none());
        assert!(ready.buffer().is_none());
    }
}
