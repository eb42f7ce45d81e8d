//! Pieces that were read and wait to be written, by one thread at a time.
//!
//! A thread pushes each piece that it has read. If no thread is writing, it becomes the writer until no piece is due;
//! otherwise it goes on reading while there are free buffers. So no thread waits to write its own piece, and few
//! threads have to be woken.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::buffer::Buffer;
use super::plan::Piece;

/// The order in which pieces are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// One at a time, in the order of the disk: so are the clusters then.
    Sequential,
    /// One at a time, in any order.
    Any,
    /// In parallel, each by the thread that read it: for pieces that are compressed when they are written.
    Parallel,
}

/// A piece and its content.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) piece: Piece,
    pub(super) buffer: Buffer,
    /// Its runs of data (true) and zeroes (false), with their lengths.
    pub(super) runs: Vec<(bool, usize)>,
}

#[derive(Debug)]
struct State {
    free: Vec<Buffer>,
    waiting: BTreeMap<u64, Filled>,
    /// The index of the piece to write next.
    next: u64,
    has_writer: bool,
    stopped: bool,
}

/// The pieces and the buffers of one copy.
#[derive(Debug)]
pub(super) struct WriteQueue {
    state: Mutex<State>,
    /// Buffers were freed, or the copy stopped.
    freed: Condvar,
    buffers: usize,
    order: Order,
}

impl WriteQueue {
    /// A queue with `buffers` buffers of `len` bytes, at least one for each thread.
    pub(super) fn new(buffers: usize, len: usize, order: Order) -> Self {
        Self {
            state: Mutex::new(State {
                free: (0..buffers).map(|_| Buffer::new(len)).collect(),
                waiting: BTreeMap::new(),
                next: 0,
                has_writer: false,
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

    /// Waits for a free buffer; `None` when the copy has stopped. Call it before taking a piece from the plan, so that
    /// the piece that is due always has a buffer.
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

    /// Queues `filled`. If no thread is writing, the caller becomes the writer, and this is the piece that it must
    /// write.
    pub(super) fn push(&self, filled: Filled) -> Option<Filled> {
        if self.order == Order::Parallel {
            return Some(filled);
        }
        let mut state = self.state();
        state.waiting.insert(filled.piece.index, filled);
        if state.has_writer {
            return None;
        }
        state.has_writer = true;
        self.due(state)
    }

    /// Frees the buffer of a piece that the writer has written, and returns the next one that it must write.
    pub(super) fn written(&self, buffer: Buffer) -> Option<Filled> {
        let mut state = self.state();
        state.free.push(buffer);
        // Not for each buffer, so that a reader has several to fill when it wakes up.
        if state.free.len() == self.buffers.div_ceil(2) {
            self.freed.notify_all();
        }
        self.due(state)
    }

    /// The next piece to write. If there is none, the caller stops being the writer.
    fn due(&self, mut state: MutexGuard<'_, State>) -> Option<Filled> {
        let next = state.next;
        let due = match self.order {
            _ if state.stopped => None,
            Order::Sequential => state.waiting.remove(&next),
            Order::Any | Order::Parallel => state.waiting.pop_first().map(|(_, filled)| filled),
        };
        if due.is_some() {
            state.next += 1;
        } else {
            state.has_writer = false;
            if !state.free.is_empty() {
                self.freed.notify_all();
            }
        }
        due
    }

    /// Ends the copy: no more pieces are written.
    pub(super) fn stop(&self) {
        self.state().stopped = true;
        self.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::plan::Kind;

    fn filled(queue: &WriteQueue, index: u64) -> Filled {
        Filled {
            piece: Piece {
                offset: index,
                len: 1,
                kind: Kind::Data,
                index,
            },
            buffer: queue.buffer().unwrap(),
            runs: Vec::new(),
        }
    }

    fn index(filled: &Filled) -> u64 {
        filled.piece.index
    }

    #[test]
    fn the_writer_gets_all_due_pieces_in_order() {
        let queue = WriteQueue::new(4, 1, Order::Sequential);
        let [a, b, c] = [0, 1, 2].map(|index| filled(&queue, index));
        assert!(queue.push(b).is_none(), "the second is not due");
        let first = queue.push(a).unwrap();
        assert_eq!(index(&first), 0);
        assert!(queue.push(c).is_none(), "there is a writer");
        let second = queue.written(first.buffer).unwrap();
        assert_eq!(index(&second), 1);
        let third = queue.written(second.buffer).unwrap();
        assert_eq!(index(&third), 2);
        assert!(queue.written(third.buffer).is_none());
    }

    #[test]
    fn in_any_order_each_queued_piece_is_due() {
        let queue = WriteQueue::new(2, 1, Order::Any);
        let [a, b] = [0, 1].map(|index| filled(&queue, index));
        let first = queue.push(b).unwrap();
        assert_eq!(index(&first), 1);
        assert!(queue.push(a).is_none());
        let second = queue.written(first.buffer).unwrap();
        assert_eq!(index(&second), 0);
        assert!(queue.written(second.buffer).is_none());
    }

    #[test]
    fn after_a_failure_no_piece_is_due() {
        let queue = WriteQueue::new(2, 1, Order::Sequential);
        let [a, b] = [0, 1].map(|index| filled(&queue, index));
        let first = queue.push(a).unwrap();
        queue.stop();
        assert!(queue.push(b).is_none());
        assert!(queue.written(first.buffer).is_none());
        assert!(queue.buffer().is_none());
    }
}
