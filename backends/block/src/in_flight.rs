//! The requests of one queue that are in flight: admission and completion.
//!
//! Requests complete in any order. Of two that overlap and of which one changes the disk, the later waits for the
//! earlier. Which way a request goes is in [`dispatch`].

mod dispatch;

use std::sync::Arc;

use bulkhead_daemon::uring::Uring;
use bulkhead_daemon::{Chain, Queue, RingError};

use crate::completions::{Completion, Completions};
use crate::execute::Job;
use crate::operations::{Kind, Operation, Operations};
use crate::request::{Request, SERIAL_LENGTH, Status, status_offset};
use crate::shared::Shared;
use crate::slot::{Slot, Stage};

/// How many requests of a queue, and how many operations in its io_uring, can be in flight.
pub(crate) const DEPTH: usize = 256;

/// The requests of one queue that are in flight.
pub(crate) struct InFlight {
    ring: Option<Operations>,
    /// Where the thread pool puts the requests that it has executed.
    completions: Arc<Completions>,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Slots in the order in which their requests were taken.
    order: Vec<usize>,
    /// Requests for the thread pool that are not submitted to it yet.
    jobs: Vec<Job>,
    /// How many requests wait for an earlier one.
    waiting: usize,
    /// How many requests the thread pool has.
    in_pool: usize,
}

impl InFlight {
    pub(crate) fn new(ring: Option<Operations>, completions: Arc<Completions>) -> Self {
        Self {
            completions,
            jobs: Vec::new(),
            ring,
            slots: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH).rev().collect(),
            order: Vec::new(),
            waiting: 0,
            in_pool: 0,
        }
    }

    pub(crate) fn ring(&self) -> Option<&Uring> {
        self.ring.as_ref().map(Operations::ring)
    }

    pub(crate) fn completions(&self) -> &Completions {
        &self.completions
    }

    /// Takes as many requests as there are free slots, and completes those that have ended.
    pub(crate) fn serve(
        &mut self,
        shared: &Shared,
        queue: &mut Queue<'_>,
    ) -> Result<(), RingError> {
        loop {
            while !self.free.is_empty()
                && let Some(chain) = queue.pop()?
            {
                self.admit(shared, queue, chain)?;
            }
            let full = self.free.is_empty();
            self.complete_ended(shared, queue)?;
            // Go on if requests that ended at once have freed slots.
            if !full || self.free.is_empty() {
                return Ok(());
            }
        }
    }

    /// Waits until every request taken is completed.
    pub(crate) fn drain(
        &mut self,
        shared: &Shared,
        queue: &mut Queue<'_>,
    ) -> Result<(), RingError> {
        self.complete_ended(shared, queue)?;
        while self.free.len() < DEPTH {
            self.wait()?;
            self.complete_ended(shared, queue)?;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), RingError> {
        match &mut self.ring {
            Some(ring) if !ring.is_idle() => ring.wait()?,
            _ if self.in_pool > 0 => self.completions.wait(),
            _ => {}
        }
        Ok(())
    }

    /// Drops the requests without completing them. When this returns, nothing uses their memory any more.
    pub(crate) fn abandon(&mut self, shared: &Shared) {
        let ended = self.ring.as_mut().map(Operations::end_all);
        for (operation, done) in ended.into_iter().flatten() {
            // The driver does not learn the result, but the image must: the kernel reports a failed sync only once.
            if operation.kind == Kind::Sync
                && let Some(Some(slot)) = self.slots.get_mut(operation.slot)
            {
                match done {
                    Ok(_) => slot.parts = slot.parts.saturating_sub(1),
                    Err(error) => shared.disk.image.flush_failed(&error),
                }
            }
        }
        // A thread of the pool may wait for these extents.
        for slot in self.slots.iter_mut().flatten() {
            slot._held_extents = None;
            if let Some(flush) = slot.flush.take_if(|_| slot.parts == 0) {
                let _ = flush.ended();
            }
            slot.flush = None;
        }
        while self.in_pool > 0 {
            self.completions.wait();
            self.in_pool -= self.completions.take().len();
        }
        *self = Self::new(self.ring.take(), Arc::clone(&self.completions));
    }

    /// Admits a request: starts it, unless it has to wait for an earlier one.
    fn admit(
        &mut self,
        shared: &Shared,
        queue: &mut Queue<'_>,
        chain: Chain,
    ) -> Result<(), RingError> {
        let request = match shared.disk.limits.parse(queue.memory(), &chain)? {
            Ok(Request::GetId) => {
                let length = status_offset(&chain)?.min(SERIAL_LENGTH as u32);
                let serial = shared.serial.get(..length as usize).unwrap_or_default();
                chain.writable().write(queue.memory(), 0, serial)?;
                return complete_chain(queue, chain, Status::Ok);
            }
            Ok(request) => request,
            Err(status) => return complete_chain(queue, chain, status),
        };
        let Some(number) = self.free.pop() else {
            return Err(RingError::Device("more requests than slots".to_owned()));
        };
        let must_wait = self.must_wait(&request, &self.order);
        let slot = Slot {
            request,
            memory: Arc::clone(queue.memory()),
            chain: Some(chain),
            _held_extents: None,
            flush: None,
            redo: false,
            parts: 0,
            status: Status::Ok,
            stage: Stage::Waiting,
        };
        if let Some(place) = self.slots.get_mut(number) {
            *place = Some(slot);
        }
        self.order.push(number);
        if must_wait {
            self.waiting += 1;
            return Ok(());
        }
        self.start(shared, queue, number)
    }

    /// Whether one of the requests in `before` must complete before `request` may start.
    fn must_wait(&self, request: &Request, before: &[usize]) -> bool {
        before
            .iter()
            .filter_map(|&number| self.slots.get(number)?.as_ref())
            .any(|other| request.conflicts(&other.request))
    }

    fn slot(&mut self, number: usize) -> Result<&mut Slot, RingError> {
        self.slots
            .get_mut(number)
            .and_then(Option::as_mut)
            .ok_or_else(|| RingError::Device("a request that nobody made has ended".to_owned()))
    }

    /// Completes a request whose operations have all ended, or has the thread pool redo it.
    fn all_parts_ended(
        &mut self,
        shared: &Shared,
        queue: &mut Queue<'_>,
        number: usize,
    ) -> Result<(), RingError> {
        let slot = self.slot(number)?;
        if std::mem::take(&mut slot.redo) && slot.status == Status::Ok {
            slot._held_extents = None;
            return self.queue_job(number);
        }
        if let Some(flush) = slot.flush.take()
            && slot.status == Status::Ok
        {
            slot.status = shared.disk.status(flush.ended());
        }
        self.complete(queue, number)
    }

    /// Submits what is new, completes what has ended, and starts what waited for that, until nothing more has ended.
    fn complete_ended(&mut self, shared: &Shared, queue: &mut Queue<'_>) -> Result<(), RingError> {
        loop {
            let mut ended = 0;
            if let Some(ring) = &mut self.ring {
                ring.submit()?;
            }
            if !self.jobs.is_empty() {
                let before = self.order.len();
                self.submit_jobs(shared, queue)?;
                ended += before - self.order.len();
            }
            // The image must know of ended writes before the data of later reads is used.
            let written = || shared.disk.image.writes_ended();
            while let Some((operation, moved)) =
                self.ring.as_mut().and_then(|ring| ring.take_ended(written))
            {
                ended += 1;
                self.operation_ended(shared, queue, operation, moved)?;
            }
            let done = self.completions.take();
            // Subtracted before the loop, which stops at the first error.
            self.in_pool -= done.len();
            for done in done {
                ended += 1;
                self.job_ended(queue, done)?;
            }
            if ended == 0 {
                return Ok(());
            }
            self.start_waiting(shared, queue)?;
        }
    }

    /// Completes a request that the thread pool, or this thread in its place, has executed.
    fn job_ended(&mut self, queue: &mut Queue<'_>, done: Completion) -> Result<(), RingError> {
        let slot = self.slot(done.slot)?;
        slot.chain = Some(done.chain);
        slot.status = done.status?;
        self.complete(queue, done.slot)
    }

    /// Starts the requests that no longer have to wait for an earlier one.
    fn start_waiting(&mut self, shared: &Shared, queue: &mut Queue<'_>) -> Result<(), RingError> {
        let mut place = 0;
        while self.waiting > 0 && place < self.order.len() {
            let (before, rest) = self.order.split_at(place);
            let Some(&number) = rest.first() else { break };
            let free = self
                .slots
                .get(number)
                .and_then(Option::as_ref)
                .is_some_and(|slot| {
                    slot.stage == Stage::Waiting && !self.must_wait(&slot.request, before)
                });
            if !free {
                place += 1;
                continue;
            }
            self.waiting -= 1;
            self.start(shared, queue, number)?;
            // It may have completed at once and left the order.
            place += usize::from(self.order.get(place) == Some(&number));
        }
        Ok(())
    }

    /// Goes on with a request of which one operation has ended.
    fn operation_ended(
        &mut self,
        shared: &Shared,
        queue: &mut Queue<'_>,
        mut operation: Operation,
        moved: std::io::Result<usize>,
    ) -> Result<(), RingError> {
        match (operation.kind, moved) {
            (Kind::Sync, Ok(_)) => {}
            // The end of the file. The image knows whether zeroes follow or data is missing, so the thread pool reads
            // through it.
            (Kind::Read, Ok(0)) => self.slot(operation.slot)?.redo = true,
            // The file was made shorter. What was read may be zeroes that a later write put where data is lost.
            (Kind::Read, Ok(_)) if shared.disk.image.is_cut() => {
                self.slot(operation.slot)?.redo = true;
            }
            (_, Ok(moved)) if moved > 0 => {
                let moved = (moved as u32).min(operation.length);
                operation.at += moved;
                operation.length -= moved;
                operation.offset += u64::from(moved);
                if operation.length > 0 {
                    return self.operate(operation);
                }
            }
            (Kind::WriteNowait, Err(error)) if needs_wait(&error) => {
                operation.kind = Kind::Write;
                return self.operate(operation);
            }
            (kind, failed) => {
                let error = failed.err().unwrap_or(std::io::ErrorKind::WriteZero.into());
                if kind == Kind::Sync {
                    shared.disk.image.flush_failed(&error);
                }
                self.slot(operation.slot)?.status = shared.disk.status(Err(error));
            }
        }
        let slot = self.slot(operation.slot)?;
        slot.parts = slot.parts.saturating_sub(1);
        if slot.parts == 0 {
            return self.all_parts_ended(shared, queue, operation.slot);
        }
        Ok(())
    }

    /// Completes a request and frees its slot.
    fn complete(&mut self, queue: &mut Queue<'_>, number: usize) -> Result<(), RingError> {
        let Some(slot) = self.slots.get_mut(number).and_then(Option::take) else {
            return Ok(());
        };
        self.free.push(number);
        self.order.retain(|&other| other != number);
        match slot.chain {
            Some(chain) => complete_chain(queue, chain, slot.status),
            None => Ok(()),
        }
    }
}

fn needs_wait(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EOPNOTSUPP))
}

/// Writes the status and returns the chain to the driver: all of its writable buffers, whatever the status is.
fn complete_chain(queue: &mut Queue<'_>, chain: Chain, status: Status) -> Result<(), RingError> {
    let at = status_offset(&chain)?;
    chain
        .writable()
        .write(queue.memory(), at, &[status.byte()])?;
    let written = chain.writable().length();
    queue.complete(chain, written)
}
