//! The requests of one queue that are under way.
//!
//! Each takes the fastest way there is. Where the image can say at once which files its data is in, the data moves between them and
//! guest memory by io_uring, in as many parts as there are extents. The rest is for the threads: clusters that must be
//! allocated, tables that must be read first or written in order, compressed clusters. Requests end in any order, but two of which one
//! changes what the other touches are done one after the other.

use std::sync::Arc;

use bulkhead_daemon::uring::Uring;
use bulkhead_daemon::{Chain, Queue, RingError};
use qcow::{Flush, Place, Plan};

use crate::desk::{Desk, Job};
use crate::execute::Disk;
use crate::flight::{Kind, Operation, Slot, Stage};
use crate::operations::Operations;
use crate::pool::Pool;
use crate::request::{Range, Request, SERIAL_LENGTH, Status, status_offset};

/// Requests of a queue, and operations in its io_uring, that are under way at a time.
pub(crate) const DEPTH: usize = 256;

/// What all queues share.
pub(crate) struct Device {
    pub(crate) disk: Arc<Disk>,
    pub(crate) pool: Pool,
    pub(crate) serial: [u8; SERIAL_LENGTH],
}

/// One queue.
pub(crate) struct Lane {
    ring: Option<Operations>,
    /// Where the threads put what they have done.
    desk: Arc<Desk>,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Slots in the order in which their requests were taken.
    order: Vec<usize>,
    /// What is for the threads and was not given to them yet.
    jobs: Vec<Job>,
    waiting: usize,
    with_threads: usize,
}

impl Lane {
    pub(crate) fn new(ring: Option<Operations>, desk: Arc<Desk>) -> Self {
        Self {
            desk,
            jobs: Vec::new(),
            ring,
            slots: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH).rev().collect(),
            order: Vec::new(),
            waiting: 0,
            with_threads: 0,
        }
    }

    pub(crate) fn ring(&self) -> Option<&Uring> {
        self.ring.as_ref().map(Operations::ring)
    }

    pub(crate) fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Takes requests, as many as may be under way, and completes what has ended.
    pub(crate) fn serve(
        &mut self,
        device: &Device,
        queue: &mut Queue<'_>,
    ) -> Result<(), RingError> {
        loop {
            while !self.free.is_empty()
                && let Some(chain) = queue.pop()?
            {
                self.begin(device, queue, chain)?;
            }
            let full = self.free.is_empty();
            self.settle(device, queue)?;
            // Those that have ended at once have made room.
            if !full || self.free.is_empty() {
                return Ok(());
            }
        }
    }

    /// Waits until all that was taken is completed.
    pub(crate) fn drain(
        &mut self,
        device: &Device,
        queue: &mut Queue<'_>,
    ) -> Result<(), RingError> {
        self.settle(device, queue)?;
        while self.free.len() < DEPTH {
            self.wait()?;
            self.settle(device, queue)?;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), RingError> {
        match &mut self.ring {
            Some(ring) if !ring.is_idle() => ring.wait()?,
            _ if self.with_threads > 0 => self.desk.wait(),
            _ => {}
        }
        Ok(())
    }

    /// Forgets what was taken, once nothing uses its memory any more.
    pub(crate) fn abandon(&mut self, device: &Device) {
        let ended = self.ring.as_mut().map(Operations::end_all);
        for (operation, done) in ended.into_iter().flatten() {
            // Nobody is told any more, but what a sync reports is reported once.
            if operation.kind == Kind::Sync
                && let Some(Some(slot)) = self.slots.get_mut(operation.slot)
            {
                match done {
                    Ok(_) => slot.parts = slot.parts.saturating_sub(1),
                    Err(error) => device.disk.image.flush_failed(&error),
                }
            }
        }
        // A thread may wait for what they keep in place.
        for slot in self.slots.iter_mut().flatten() {
            slot._plan = None;
            if let Some(flush) = slot.flush.take_if(|_| slot.parts == 0) {
                let _ = flush.ended();
            }
            slot.flush = None;
        }
        while self.with_threads > 0 {
            self.desk.wait();
            self.with_threads -= self.desk.take().len();
        }
        *self = Self::new(self.ring.take(), Arc::clone(&self.desk));
    }

    /// Takes a request.
    fn begin(
        &mut self,
        device: &Device,
        queue: &mut Queue<'_>,
        chain: Chain,
    ) -> Result<(), RingError> {
        let request = match device.disk.limits.parse(queue.memory(), &chain)? {
            Ok(Request::GetId) => {
                let length = status_offset(&chain)?.min(SERIAL_LENGTH as u32);
                let serial = device.serial.get(..length as usize).unwrap_or_default();
                chain.writable().write(queue.memory(), 0, serial)?;
                return complete(queue, chain, Status::Ok);
            }
            Ok(request) => request,
            Err(status) => return complete(queue, chain, status),
        };
        let Some(number) = self.free.pop() else {
            return Err(RingError::Device("more requests than places".to_owned()));
        };
        let must_wait = self.must_wait(&request, &self.order);
        let slot = Slot {
            request,
            memory: Arc::clone(queue.memory()),
            chain: Some(chain),
            _plan: None,
            flush: None,
            again: false,
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
        self.start(device, queue, number)
    }

    /// Whether one of the requests in `before` must end before `request` may begin.
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

    /// Starts a request, which nothing has to wait for.
    fn start(
        &mut self,
        device: &Device,
        queue: &mut Queue<'_>,
        number: usize,
    ) -> Result<(), RingError> {
        let room = self.ring.as_ref().map_or(0, Operations::room);
        let write = self.ring.as_ref().and_then(Operations::write_kind);
        let write = write.filter(|_| !device.disk.is_write_through());
        let disk = Arc::clone(&device.disk);
        let (kind, plan) = match self.slot(number)?.request {
            _ if room == 0 => (Kind::Read, Ok(None)),
            Request::Read(range) => (Kind::Read, plan_read(&disk, range)),
            Request::Write(range) => match write {
                Some(kind) => (kind, plan_write(&disk, range)),
                None => (Kind::Write, Ok(None)),
            },
            Request::Flush => match disk.image.plan_flush() {
                Ok(Some(flush)) if flush.files().len() <= room => {
                    return self.start_flush(device, queue, number, flush);
                }
                Ok(_) => (Kind::Sync, Ok(None)),
                Err(error) => (Kind::Sync, Err(error)),
            },
            _ => (Kind::Write, Ok(None)),
        };
        match plan {
            Ok(Some(plan)) if plan.parts.len() <= room => {
                self.start_parts(queue, number, kind, plan)
            }
            Ok(_) => self.give(number),
            Err(error) => {
                self.slot(number)?.status = disk.status(Err(error));
                self.finish(queue, number)
            }
        }
    }

    /// Puts a request aside that the threads are to do.
    fn give(&mut self, number: usize) -> Result<(), RingError> {
        let desk = Arc::clone(&self.desk);
        let slot = self.slot(number)?;
        slot.stage = Stage::Threads;
        let Some(chain) = slot.chain.take() else {
            return Ok(());
        };
        let job = Job {
            slot: number,
            chain,
            request: slot.request.clone(),
            memory: Arc::clone(&slot.memory),
            desk,
        };
        self.jobs.push(job);
        Ok(())
    }

    /// Gives the threads what was put aside for them. A write that is alone is done here, if nothing but the file is waited for: to
    /// hand it over and to be told of its end takes longer than most writes, and it keeps nobody waiting.
    fn send(&mut self, device: &Device, queue: &mut Queue<'_>) -> Result<(), RingError> {
        if let ([job], [_]) = (self.jobs.as_slice(), self.order.as_slice())
            && let Request::Write(range) = job.request
            && !device.disk.is_write_through()
            && device
                .disk
                .image
                .writes_in_place(range.offset, range.length as usize)
        {
            for (_, done) in device.disk.do_all(self.jobs.drain(..)) {
                let slot = self.slot(done.slot)?;
                slot.chain = Some(done.chain);
                slot.status = done.status?;
                self.finish(queue, done.slot)?;
            }
            return Ok(());
        }
        let count = self.jobs.len();
        device.pool.give(&mut self.jobs)?;
        self.with_threads += count;
        Ok(())
    }

    fn start_flush(
        &mut self,
        device: &Device,
        queue: &mut Queue<'_>,
        number: usize,
        flush: Flush,
    ) -> Result<(), RingError> {
        let files = flush.files().to_vec();
        let slot = self.slot(number)?;
        slot.stage = Stage::Ring;
        slot.parts = files.len();
        slot.flush = Some(flush);
        for &file in &files {
            self.operate(Operation {
                slot: number,
                kind: Kind::Sync,
                file: file as u32,
                offset: 0,
                at: 0,
                length: 0,
            })?;
        }
        if files.is_empty() {
            return self.all_parts_ended(device, queue, number);
        }
        Ok(())
    }

    /// Completes a request whose parts have all ended.
    fn all_parts_ended(
        &mut self,
        device: &Device,
        queue: &mut Queue<'_>,
        number: usize,
    ) -> Result<(), RingError> {
        let slot = self.slot(number)?;
        if std::mem::take(&mut slot.again) && slot.status == Status::Ok {
            slot._plan = None;
            return self.give(number);
        }
        if let Some(flush) = slot.flush.take()
            && slot.status == Status::Ok
        {
            slot.status = device.disk.status(flush.ended());
        }
        self.finish(queue, number)
    }

    /// Starts the parts of a request that are in files, and does the others.
    fn start_parts(
        &mut self,
        queue: &mut Queue<'_>,
        number: usize,
        kind: Kind,
        plan: Plan,
    ) -> Result<(), RingError> {
        let mut parts = 0;
        for part in &plan.parts {
            let (at, length) = (part.at as u32, part.len as u32);
            match part.place {
                Place::File { file, offset } => {
                    parts += 1;
                    self.operate(Operation {
                        slot: number,
                        kind,
                        file: file as u32,
                        offset,
                        at,
                        length,
                    })?;
                }
                Place::Zero => self.slot(number)?.zero(at, length)?,
            }
        }
        let slot = self.slot(number)?;
        slot.stage = Stage::Ring;
        slot.parts = parts;
        slot._plan = Some(plan);
        if parts == 0 {
            return self.finish(queue, number);
        }
        Ok(())
    }

    /// Puts an operation into the ring.
    fn operate(&mut self, operation: Operation) -> Result<(), RingError> {
        let slot = self.slots.get(operation.slot).and_then(Option::as_ref);
        match (&mut self.ring, slot) {
            (Some(ring), Some(slot)) => ring.begin(operation, slot),
            _ => Err(RingError::Device("there is no io_uring".to_owned())),
        }
    }

    /// Tells the kernel of new operations, completes what has ended, and starts what waited for that; until nothing more has ended.
    fn settle(&mut self, device: &Device, queue: &mut Queue<'_>) -> Result<(), RingError> {
        loop {
            let mut ended = 0;
            if let Some(ring) = &mut self.ring {
                ring.submit()?;
            }
            if !self.jobs.is_empty() {
                let before = self.order.len();
                self.send(device, queue)?;
                ended += before - self.order.len();
            }
            // Before what was read after them counts.
            let written = || device.disk.image.writes_ended();
            while let Some((operation, moved)) =
                self.ring.as_mut().and_then(|ring| ring.take_ended(written))
            {
                ended += 1;
                self.operation_ended(device, queue, operation, moved)?;
            }
            let done = self.desk.take();
            // All at once: the first that fails leaves the rest unseen.
            self.with_threads -= done.len();
            for done in done {
                ended += 1;
                let slot = self.slot(done.slot)?;
                slot.chain = Some(done.chain);
                slot.status = done.status?;
                self.finish(queue, done.slot)?;
            }
            if ended == 0 {
                return Ok(());
            }
            self.start_waiting(device, queue)?;
        }
    }

    fn start_waiting(&mut self, device: &Device, queue: &mut Queue<'_>) -> Result<(), RingError> {
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
            self.start(device, queue, number)?;
            // It may have ended at once.
            place += usize::from(self.order.get(place) == Some(&number));
        }
        Ok(())
    }

    fn operation_ended(
        &mut self,
        device: &Device,
        queue: &mut Queue<'_>,
        mut operation: Operation,
        moved: std::io::Result<usize>,
    ) -> Result<(), RingError> {
        match (operation.kind, moved) {
            (Kind::Sync, Ok(_)) => {}
            // The end of the file: the image knows whether zeroes follow or data is missing.
            (Kind::Read, Ok(0)) => self.slot(operation.slot)?.again = true,
            // Perhaps what a write has made of what is lost.
            (Kind::Read, Ok(_)) if device.disk.image.is_cut() => {
                self.slot(operation.slot)?.again = true;
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
            (Kind::WriteAtOnce, Err(error)) if would_wait(&error) => {
                operation.kind = Kind::Write;
                return self.operate(operation);
            }
            (kind, failed) => {
                let error = failed.err().unwrap_or(std::io::ErrorKind::WriteZero.into());
                if kind == Kind::Sync {
                    device.disk.image.flush_failed(&error);
                }
                self.slot(operation.slot)?.status = device.disk.status(Err(error));
            }
        }
        let slot = self.slot(operation.slot)?;
        slot.parts = slot.parts.saturating_sub(1);
        if slot.parts == 0 {
            return self.all_parts_ended(device, queue, operation.slot);
        }
        Ok(())
    }

    /// Tells the driver that a request has ended.
    fn finish(&mut self, queue: &mut Queue<'_>, number: usize) -> Result<(), RingError> {
        let Some(slot) = self.slots.get_mut(number).and_then(Option::take) else {
            return Ok(());
        };
        self.free.push(number);
        self.order.retain(|&other| other != number);
        match slot.chain {
            Some(chain) => complete(queue, chain, slot.status),
            None => Ok(()),
        }
    }
}

fn plan_read(disk: &Disk, range: Range) -> qcow::Result<Option<Plan>> {
    disk.image.plan_read(range.offset, range.length as usize)
}

fn plan_write(disk: &Disk, range: Range) -> qcow::Result<Option<Plan>> {
    disk.image.plan_write(range.offset, range.length as usize)
}

fn would_wait(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EOPNOTSUPP))
}

/// Whatever became of the request, all its writable buffers are the driver's again.
fn complete(queue: &mut Queue<'_>, chain: Chain, status: Status) -> Result<(), RingError> {
    let at = status_offset(&chain)?;
    chain
        .writable()
        .write(queue.memory(), at, &[status.byte()])?;
    let written = chain.writable().length();
    queue.complete(chain, written)
}
