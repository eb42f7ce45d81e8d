//! The operations of one queue that are in flight in its io_uring.

use std::collections::VecDeque;
use std::io;

use bulkhead_daemon::RingError;
use bulkhead_daemon::uring::Uring;

use crate::nowait::NowaitSupport;
use crate::request::HEADER;
use crate::slot::Slot;

/// An operation: one part of a request.
#[derive(Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) slot: usize,
    pub(crate) kind: Kind,
    /// Which of the files that are registered with the io_uring.
    pub(crate) file: u32,
    /// Where in the file.
    pub(crate) offset: u64,
    /// Where in the data of the request, and how long.
    pub(crate) at: u32,
    pub(crate) length: u32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Read,
    Write,
    /// A write with RWF_NOWAIT: it fails if it had to wait.
    WriteNowait,
    Sync,
}

/// An io_uring, and which operations it has.
pub(crate) struct Operations {
    ring: Uring,
    operations: Vec<Option<Operation>>,
    /// Operations that have ended, with the bytes that they moved.
    ended: VecDeque<(Operation, io::Result<usize>)>,
    nowait: NowaitSupport,
}

impl Operations {
    pub(crate) fn new(ring: Uring, nowait: NowaitSupport) -> Self {
        Self {
            operations: vec![None; ring.room()],
            ring,
            ended: VecDeque::new(),
            nowait,
        }
    }

    pub(crate) fn ring(&self) -> &Uring {
        &self.ring
    }

    /// How many more operations there is room for.
    pub(crate) fn room(&self) -> usize {
        self.ring.room()
    }

    /// How the io_uring should do the next write; `None` if the thread pool does it faster.
    pub(crate) fn write_kind(&self) -> Option<Kind> {
        match self.nowait {
            nowait if !nowait.use_ring() => None,
            nowait if nowait.is_probing() => Some(Kind::WriteNowait),
            _ => Some(Kind::Write),
        }
    }

    /// Whether no operation is in flight, and every completion was taken.
    pub(crate) fn is_idle(&self) -> bool {
        self.ring.is_idle() && self.ended.is_empty()
    }

    /// Adds an operation for the request in `slot`.
    pub(crate) fn begin(&mut self, operation: Operation, slot: &Slot) -> Result<(), RingError> {
        let place = self.operations.iter().position(Option::is_none);
        let (Some(token), Some(chain)) = (place, slot.chain.as_ref()) else {
            return Err(RingError::Device("no room in the io_uring".to_owned()));
        };
        let (memory, number) = (&slot.memory, token as u64);
        let place = (operation.file, operation.offset);
        match operation.kind {
            Kind::Read => {
                let to = chain.writable().part(operation.at, operation.length)?;
                self.ring.read(place, memory, &to, number)?;
            }
            Kind::Write | Kind::WriteNowait => {
                let at = HEADER.saturating_add(operation.at);
                let from = chain.readable().part(at, operation.length)?;
                match operation.kind {
                    Kind::WriteNowait => self.ring.write_nowait(place, memory, &from, number)?,
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

    /// Submits the new operations to the kernel.
    pub(crate) fn submit(&mut self) -> Result<(), RingError> {
        self.ring.submit().map_err(lost)
    }

    /// Waits until an operation ends, unless a completion is there to be taken.
    pub(crate) fn wait(&mut self) -> Result<(), RingError> {
        match self.ended.is_empty() {
            true => self.ring.wait().map_err(lost),
            false => Ok(()),
        }
    }

    /// Takes an operation that has ended, and how many bytes it moved. Calls `written` before it returns the first of
    /// several operations that ended together, if there are writes among them.
    pub(crate) fn take_ended(
        &mut self,
        written: impl FnOnce(),
    ) -> Option<(Operation, io::Result<usize>)> {
        if self.ended.is_empty() && self.collect() {
            written();
        }
        self.ended.pop_front()
    }

    /// Collects the operations that have ended. Returns whether there are writes among them.
    fn collect(&mut self) -> bool {
        let mut written = false;
        while let Some((token, moved)) = self.ring.take_ended() {
            let token = usize::try_from(token).unwrap_or(usize::MAX);
            let Some(operation) = self.operations.get_mut(token).and_then(Option::take) else {
                continue;
            };
            if operation.kind == Kind::WriteNowait {
                self.nowait.probed(moved.is_ok());
            }
            written |= matches!(operation.kind, Kind::Write | Kind::WriteNowait);
            self.ended.push_back((operation, moved));
        }
        written
    }

    /// Waits until no operation is in flight, and returns the results of all.
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
