//! Which way a request goes: io_uring, the thread pool, or this thread.
//!
//! If the image knows without I/O in which files the data is, the data moves between them and guest memory by io_uring,
//! one operation an extent. The rest goes to the thread pool: clusters to be allocated, tables to be read first or
//! written in order, compressed clusters.

use std::sync::Arc;

use bulkhead_daemon::{Queue, RingError};
use qcow::{Flush, Place, Plan};

use super::InFlight;
use crate::execute::Disk;
use crate::execute::Job;
use crate::operations::{Kind, Operation, Operations};
use crate::request::{Range, Request};
use crate::shared::Shared;
use crate::slot::Stage;

impl InFlight {
    /// Starts a request, which has no earlier one to wait for.
    pub(super) fn start(
        &mut self,
        shared: &Shared,
        queue: &mut Queue<'_>,
        number: usize,
    ) -> Result<(), RingError> {
        let room = self.ring.as_ref().map_or(0, Operations::room);
        let write = self.ring.as_ref().and_then(Operations::write_kind);
        let write = write.filter(|_| !shared.disk.is_write_through());
        let disk = Arc::clone(&shared.disk);
        let (kind, plan) = match self.slot(number)?.request {
            _ if room == 0 => (Kind::Read, Ok(None)),
            Request::Read(range) => (Kind::Read, plan_read(&disk, range)),
            Request::Write(range) => match write {
                Some(kind) => (kind, plan_write(&disk, range)),
                None => (Kind::Write, Ok(None)),
            },
            Request::Flush => match disk.image.plan_flush() {
                Ok(Some(flush)) if flush.files().len() <= room => {
                    return self.start_flush(shared, queue, number, flush);
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
            Ok(_) => self.queue_job(number),
            Err(error) => {
                self.slot(number)?.status = disk.status(Err(error));
                self.complete(queue, number)
            }
        }
    }

    /// Starts an operation for each extent of `plan` that is in a file, and fills the others with zeroes.
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
        slot._held_extents = Some(plan);
        if parts == 0 {
            return self.complete(queue, number);
        }
        Ok(())
    }

    /// Starts a sync of each file that `flush` names.
    fn start_flush(
        &mut self,
        shared: &Shared,
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
            return self.all_parts_ended(shared, queue, number);
        }
        Ok(())
    }

    /// Puts a request in line for the thread pool.
    pub(super) fn queue_job(&mut self, number: usize) -> Result<(), RingError> {
        let completions = Arc::clone(&self.completions);
        let slot = self.slot(number)?;
        slot.stage = Stage::Pool;
        let Some(chain) = slot.chain.take() else {
            return Ok(());
        };
        let job = Job {
            slot: number,
            chain,
            request: slot.request.clone(),
            memory: Arc::clone(&slot.memory),
            completions,
        };
        self.jobs.push(job);
        Ok(())
    }

    /// Submits the requests in line to the thread pool. If the only request in flight is a write that needs no
    /// metadata, this thread executes it: handing it to the pool and back takes longer than most writes, and no other
    /// request has to wait for it.
    pub(super) fn submit_jobs(
        &mut self,
        shared: &Shared,
        queue: &mut Queue<'_>,
    ) -> Result<(), RingError> {
        if let ([job], [_]) = (self.jobs.as_slice(), self.order.as_slice())
            && let Request::Write(range) = job.request
            && !shared.disk.is_write_through()
            && shared
                .disk
                .image
                .writes_in_place(range.offset, range.length as usize)
        {
            for (_, done) in shared.disk.execute_all(self.jobs.drain(..)) {
                self.job_ended(queue, done)?;
            }
            return Ok(());
        }
        let count = self.jobs.len();
        shared.pool.submit(&mut self.jobs)?;
        self.in_pool += count;
        Ok(())
    }

    /// Adds an operation to the io_uring; it is submitted later with others.
    pub(super) fn operate(&mut self, operation: Operation) -> Result<(), RingError> {
        let slot = self.slots.get(operation.slot).and_then(Option::as_ref);
        match (&mut self.ring, slot) {
            (Some(ring), Some(slot)) => ring.begin(operation, slot),
            _ => Err(RingError::Device("there is no io_uring".to_owned())),
        }
    }
}

fn plan_read(disk: &Disk, range: Range) -> qcow::Result<Option<Plan>> {
    disk.image.plan_read(range.offset, range.length as usize)
}

fn plan_write(disk: &Disk, range: Range) -> qcow::Result<Option<Plan>> {
    disk.image.plan_write(range.offset, range.length as usize)
}
