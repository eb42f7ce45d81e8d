//! The copy: threads that take pieces from the plan, read them, leave out zeroes and write the rest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use qcow::{ErrorKind, Image};

use super::Input;
use super::buffer::Buffer;
use super::failure::Failure;
use super::offload;
use super::plan::{Kind, Piece, Plan};
use super::salvage::Salvage;
use super::workers;
use super::write_queue::{Filled, Order, WriteQueue};
use super::writeback::Writeback;
use super::zero::{SECTOR, Sparse, first_run, is_zero};
use crate::output::progress::Progress;

/// Fewest buffers, so that reading and writing seldom wait for each other.
const BUFFERS: usize = 8;

/// The parameters of a copy.
pub(crate) struct Copy<'a> {
    pub(crate) input: &'a Input,
    pub(crate) target: &'a Image,
    /// Makes holes of zeroes in data; `None` writes them.
    pub(crate) sparse: Option<Sparse>,
    /// Ranges that the input maps as zeroes are written as data.
    pub(crate) zeroes_as_data: bool,
    /// The target reads as zeroes, so zeroes need not be written.
    pub(crate) target_is_zero: bool,
    pub(crate) compressed: bool,
    /// Writes zeroes for what cannot be read, and warns.
    pub(crate) salvage: Option<Salvage>,
    /// Copies with copy_file_range where possible.
    pub(crate) offload: bool,
    pub(crate) order: Order,
    pub(crate) threads: usize,
    /// The target must be durable at the end, so it is flushed during the copy.
    pub(crate) durable: bool,
    /// Bytes per second.
    pub(crate) rate: Option<u64>,
    pub(crate) progress: &'a Progress,
    /// Bytes that make 100 % of the progress.
    pub(crate) total: u64,
}

/// The state that the threads share.
struct Shared<'a> {
    copy: &'a Copy<'a>,
    plan: Mutex<Plan>,
    queue: WriteQueue,
    done: AtomicU64,
    /// Bytes written, without holes, for the rate limit.
    written: AtomicU64,
    failure: Mutex<Option<Failure>>,
    started: Instant,
    writeback: Option<Writeback>,
}

/// Copies the pieces of the plan until the first error.
pub(crate) fn run(copy: &Copy<'_>, plan: Plan) -> Result<(), Failure> {
    let buffer_len = usize::try_from(plan.max_data).unwrap_or(usize::MAX);
    let threads = copy.threads.max(1);
    let shared = Shared {
        copy,
        plan: Mutex::new(plan),
        queue: WriteQueue::new(BUFFERS.max(2 * threads), buffer_len, copy.order),
        done: AtomicU64::new(0),
        written: AtomicU64::new(0),
        failure: Mutex::new(None),
        started: Instant::now(),
        writeback: copy.durable.then(Writeback::default),
    };
    thread::scope(|scope| {
        if let Some(writeback) = &shared.writeback {
            // Without this thread, everything is flushed at the end.
            let _ = thread::Builder::new().spawn_scoped(scope, || shared.flush(writeback));
        }
        workers::share(threads, || shared.work());
        if let Some(writeback) = &shared.writeback {
            writeback.end();
        }
    });
    match shared
        .failure
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
    {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared<'_> {
    fn work(&self) {
        while let Some(mut buffer) = self.queue.buffer() {
            let Some(piece) = self.take() else {
                return;
            };
            let runs = match self.fill(piece, &mut buffer) {
                Ok(runs) => runs,
                Err(failure) => return self.fail(failure),
            };
            let mut due = self.queue.push(Filled {
                piece,
                buffer,
                runs,
            });
            while let Some(mut filled) = due {
                if let Err(failure) = self.write(&mut filled) {
                    self.fail(failure);
                }
                due = self.queue.written(filled.buffer);
            }
        }
    }

    fn flush(&self, writeback: &Writeback) {
        if let Err(error) = writeback.run(self.copy.target) {
            self.fail(Failure::Write(self.done.load(Ordering::Relaxed), error));
        }
    }

    fn take(&self) -> Option<Piece> {
        let mut plan = lock(&self.plan);
        match plan.next(self.copy.input) {
            Ok(piece) => piece,
            Err(failure) => {
                drop(plan);
                self.fail(failure);
                None
            }
        }
    }

    fn fail(&self, failure: Failure) {
        lock(&self.failure).get_or_insert(failure);
        self.queue.stop();
    }

    /// Reads a piece and finds its runs of data, which takes longest and so is done before the piece is queued.
    fn fill(&self, piece: Piece, buffer: &mut Buffer) -> Result<Vec<(bool, usize)>, Failure> {
        let len = usize::try_from(piece.len).unwrap_or(usize::MAX);
        match piece.kind {
            Kind::Backing => return Ok(Vec::new()),
            Kind::Zero if !self.copy.zeroes_as_data => return Ok(Vec::new()),
            Kind::Zero => buffer.first(len).fill(0),
            Kind::Data if self.copy.offload => return Ok(Vec::new()),
            Kind::Data => self.read(piece, buffer.first(len))?,
        }
        Ok(self.runs(piece.offset, buffer.first(len)))
    }

    fn read(&self, piece: Piece, buffer: &mut [u8]) -> Result<(), Failure> {
        let outcome = self.copy.input.read(piece.offset, buffer);
        match (outcome, self.copy.salvage) {
            (Ok(()), _) => Ok(()),
            (Err((_, error)), None) => Err(Failure::Read(piece.offset, error)),
            (Err(_), Some(salvage)) => {
                self.salvage(piece.offset, buffer, salvage);
                Ok(())
            }
        }
    }

    /// Reads sector by sector, and skips the whole cluster where an L2 entry is damaged.
    fn salvage(&self, offset: u64, buffer: &mut [u8], salvage: Salvage) {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset + done as u64;
            let len = SECTOR.min(rest.len());
            let (sector, _) = rest.split_at_mut(len);
            let Err((_, error)) = self.copy.input.read(at, sector) else {
                done += len;
                continue;
            };
            let Some(position) = self.copy.input.at(at) else {
                return;
            };
            salvage.warn("reading", at, &error, &position);
            let lost = match error.kind() {
                ErrorKind::Corrupt => usize::try_from(position.damaged()).unwrap_or(len),
                _ => len,
            };
            let lost = lost.clamp(len, rest.len());
            rest.split_at_mut(lost).0.fill(0);
            done += lost;
        }
    }

    /// Divides data into runs to write and runs of zeroes.
    fn runs(&self, offset: u64, data: &[u8]) -> Vec<(bool, usize)> {
        let Some(sparse) = self.copy.sparse.filter(|_| !self.copy.compressed) else {
            return vec![(true, data.len())];
        };
        let mut runs = Vec::new();
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let run = first_run(rest, (offset + done as u64) / SECTOR as u64, sparse);
            runs.push(run);
            done += run.1.max(1);
        }
        runs
    }

    fn write(&self, filled: &mut Filled) -> Result<(), Failure> {
        let piece = filled.piece;
        match piece.kind {
            Kind::Backing => return Ok(()),
            Kind::Zero if !self.copy.zeroes_as_data => {
                return self.zero(piece.offset, piece.len);
            }
            Kind::Zero | Kind::Data => {}
        }
        let len = usize::try_from(piece.len).unwrap_or(usize::MAX);
        if piece.kind == Kind::Data && self.copy.offload {
            self.offload(piece, filled.buffer.first(len))?;
        } else if self.copy.compressed {
            self.write_compressed(piece.offset, filled.buffer.first(len))?;
        } else {
            self.write_runs(piece.offset, filled.buffer.first(len), &filled.runs)?;
        }
        if let Some(writeback) = &self.writeback {
            writeback.wrote(piece.len);
        }
        let done = self.done.fetch_add(piece.len, Ordering::Relaxed) + piece.len;
        self.throttle();
        self.copy
            .progress
            .set((100.0 * done as f64 / self.copy.total.max(1) as f64) as f32);
        Ok(())
    }

    /// Copies a piece with copy_file_range, or else reads and writes it with this buffer.
    fn offload(&self, piece: Piece, buffer: &mut [u8]) -> Result<(), Failure> {
        let zero = |at, len| match self.copy.target_is_zero {
            true => Ok(()),
            false => self.copy.target.write_zeroes(at, len, true),
        };
        if let Some(position) = self.copy.input.at(piece.offset) {
            let copied = offload::copy(
                &position,
                buffer.len(),
                self.copy.target,
                piece.offset,
                zero,
            );
            let copied = copied.map_err(|failure| match failure {
                offload::Failure::Read(error) => Failure::Read(piece.offset, error),
                offload::Failure::Write(error) => Failure::Write(piece.offset, error),
            })?;
            if copied {
                self.written.fetch_add(piece.len, Ordering::Relaxed);
                return Ok(());
            }
        }
        self.read(piece, buffer)?;
        self.write_runs(piece.offset, buffer, &[(true, buffer.len())])
    }

    fn write_runs(&self, offset: u64, data: &[u8], runs: &[(bool, usize)]) -> Result<(), Failure> {
        let (mut at, mut rest) = (offset, data);
        for &(is_data, len) in runs {
            let (now, later) = rest.split_at(len.min(rest.len()));
            if is_data {
                self.copy
                    .target
                    .write_at(at, now)
                    .map_err(|error| Failure::Write(offset, error))?;
                self.written.fetch_add(now.len() as u64, Ordering::Relaxed);
            } else {
                self.zero(at, len as u64)?;
            }
            at += len as u64;
            rest = later;
        }
        Ok(())
    }

    /// Writes cluster by cluster, and leaves out those of zeroes.
    fn write_compressed(&self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        let cluster = self.copy.target.cluster_size().unwrap_or(65536);
        let clusters = data.chunks(usize::try_from(cluster).unwrap_or(usize::MAX));
        for (at, bytes) in (offset..).step_by(cluster as usize).zip(clusters) {
            if self.copy.sparse.is_some() && is_zero(bytes) {
                self.zero(at, bytes.len() as u64)?;
            } else {
                self.copy
                    .target
                    .write_compressed(at, bytes)
                    .map_err(|error| Failure::Write(offset, error))?;
                self.written
                    .fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), Failure> {
        if self.copy.target_is_zero {
            return Ok(());
        }
        self.copy
            .target
            .write_zeroes(offset, len, true)
            .map_err(|error| Failure::Write(offset, error))
    }

    fn throttle(&self) {
        let Some(rate) = self.copy.rate.filter(|&rate| rate > 0) else {
            return;
        };
        let written = self.written.load(Ordering::Relaxed);
        let due = Duration::from_secs_f64(written as f64 / rate as f64);
        thread::sleep(due.saturating_sub(self.started.elapsed()));
    }
}
