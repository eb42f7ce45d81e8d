//! The operations of one queue that are under way in its io_uring.

use std::collections::VecDeque;
use std::io;

use bulkhead_daemon::RingError;
use bulkhead_daemon::uring::Uring;

use crate::flight::{Kind, Operation, Slot};
use crate::request::HEADER;
use crate::writes::WritePath;

/// An io_uring, and what its operations are for.
pub(crate) struct Operations {
    ring: Uring,
    operations: Vec<Option<Operation>>,
    /// Those that have ended.
    ended: VecDeque<(Operation, io::Result<usize>)>,
    writes: WritePath,
}

impl Operations {
    pub(crate) fn new(ring: Uring, writes: WritePath) -> Self {
        Self {
            operations: vec![None; ring.room()],
            ring,
            ended: VecDeque::new(),
            writes,
        }
    }

    pub(crate) fn ring(&self) -> &Uring {
        &self.ring
    }

    /// How many more may be begun.
    pub(crate) fn room(&self) -> usize {
        self.ring.room()
    }

    /// How the next write is best done here, if it is.
    pub(crate) fn write_kind(&self) -> Option<Kind> {
        match self.writes {
            writes if !writes.is_ring() => None,
            writes if writes.is_trying() => Some(Kind::WriteAtOnce),
            _ => Some(Kind::Write),
        }
    }

    /// Whether none is under way, nor one's end untold.
    pub(crate) fn is_idle(&self) -> bool {
        self.ring.is_idle() && self.ended.is_empty()
    }

    /// Begins an operation, which is a part of the request in `slot`.
    pub(crate) fn begin(&mut self, operation: Operation, slot: &Slot) -> Result<(), RingError> {
        let place = self.operations.iter().position(Option::is_none);
        let (Some(token), Some(chain)) = (place, slot.chain.as_ref()) else {
            return Err(RingError::Device("no place in the io_uring".to_owned()));
        };
        let (memory, number) = (&slot.memory, token as u64);
        let place = (operation.file, operation.offset);
        match operation.kind {
            Kind::Read => {
                let to = chain.writable().part(operation.at, operation.length)?;
                self.ring.read(place, memory, &to, number)?;
            }
            Kind::Write | Kind::WriteAtOnce => {
                let at = HEADER.saturating_add(operation.at);
                let from = chain.readable().part(at, operation.length)?;
                match operation.kind {
                    Kind::WriteAtOnce => self.ring.write_at_once(place, memory, &from, number)?,
                    _ => self.ring.write(place, memory, &from, number)?,
                }
            }
            Kind::Sync => self.ring.sync(operation.file, number)?,
        }
        if let Some(entry) = self.operations.get_mut(token) {
            *entry = Some(operation);
        }
        Ok(())
    }

    /// Tells the kernel of new operations.
    pub(crate) fn submit(&mut self) -> Result<(), RingError> {
        self.ring.submit().map_err(lost)
    }

    /// Waits until one ends, if one is under way.
    pub(crate) fn wait(&mut self) -> Result<(), RingError> {
        match self.ended.is_empty() {
            true => self.ring.wait().map_err(lost),
            false => Ok(()),
        }
    }

    /// One that has ended, and how many bytes it moved; `written` is called before writes are among those that are taken next.
    pub(crate) fn take_ended(
        &mut self,
        written: impl FnOnce(),
    ) -> Option<(Operation, io::Result<usize>)> {
        if self.ended.is_empty() && self.collect() {
            written();
        }
        self.ended.pop_front()
    }

    /// Whether there are writes among those that have ended.
    fn collect(&mut self) -> bool {
        let mut written = false;
        while let Some((token, moved)) = self.ring.take_ended() {
            let token = usize::try_from(token).unwrap_or(usize::MAX);
            let Some(operation) = self.operations.get_mut(token).and_then(Option::take) else {
                continue;
            };
            if operation.kind == Kind::WriteAtOnce {
                self.writes.tried(moved.is_ok());
            }
            written |= matches!(operation.kind, Kind::Write | Kind::WriteAtOnce);
            self.ended.push_back((operation, moved));
        }
        written
    }

    /// Waits until none is under way; returns what became of them.
    pub(crate) fn end_all(&mut self) -> Vec<(Operation, io::Result<usize>)> {
        let mut all = Vec::new();
        while !self.is_idle() && self.wait().is_ok() {
            while let Some(ended) = self.take_ended(|| {}) {
                all.push(ended);
            }
        }
        all
    }
}

fn lost(error: io::Error) -> RingError {
    RingError::Device(format!("io_uring: {error}"))
}
