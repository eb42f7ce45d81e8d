//! The copy itself: threads that take pieces of the plan, read them, leave out zeroes and write the rest.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use qcow::Image;

use super::Input;
use super::plan::{Kind, Piece, Plan};
use super::writeback::Writeback;
use super::zero::{SECTOR, Sparse, first_run, is_zero};
use crate::buffer::Buffer;
use crate::progress::Progress;

/// Everything about one copy.
pub(crate) struct Copy<'a> {
    pub(crate) input: &'a Input,
    pub(crate) target: &'a Image,
    /// Zeroes in data become holes; `None` writes data as it is.
    pub(crate) sparse: Option<Sparse>,
    /// What the input says is zeroes is written as data, too.
    pub(crate) zeroes_as_data: bool,
    /// Zeroes need not be written: the target reads as zeroes.
    pub(crate) target_is_zero: bool,
    pub(crate) compressed: bool,
    /// Read errors become zeroes and a warning (when not quiet).
    pub(crate) salvage: Option<Salvage>,
    pub(crate) in_order: bool,
    pub(crate) threads: usize,
    /// The target is to be durable at the end: it is flushed all along.
    pub(crate) durable: bool,
    /// Bytes per second.
    pub(crate) rate: Option<u64>,
    pub(crate) progress: &'a Progress,
    /// Bytes that count for the progress.
    pub(crate) total: u64,
}

/// What to do about sources that cannot be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Salvage {
    pub(crate) quiet: bool,
}

/// Where a copy ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    Status(u64, qcow::Error),
    Read(u64, qcow::Error),
    Write(u64, qcow::Error),
}

/// What the threads share.
struct Shared<'a> {
    copy: &'a Copy<'a>,
    plan: Mutex<Plan>,
    /// The piece whose turn it is to be written.
    turn: Mutex<u64>,
    /// One for each thread, and each piece has the one of its index: only the thread whose turn it is wakes up.
    turns: Vec<Condvar>,
    done: AtomicU64,
    stop: AtomicBool,
    failure: Mutex<Option<Failure>>,
    started: Instant,
    written: AtomicU64,
    writeback: Option<Writeback>,
}

/// Copies what the plan says. The first error ends it.
pub(crate) fn run(copy: &Copy<'_>, plan: Plan) -> Result<(), Failure> {
    let buffer_len = usize::try_from(plan.max_data).unwrap_or(usize::MAX);
    let shared = Shared {
        copy,
        plan: Mutex::new(plan),
        turn: Mutex::new(0),
        turns: (0..copy.threads.max(1)).map(|_| Condvar::new()).collect(),
        done: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
        started: Instant::now(),
        written: AtomicU64::new(0),
        writeback: copy.durable.then(Writeback::default),
    };
    thread::scope(|scope| {
        if let Some(writeback) = &shared.writeback {
            scope.spawn(|| shared.flush(writeback));
        }
        for _ in 1..copy.threads.max(1) {
            scope.spawn(|| shared.work(&mut Buffer::new(buffer_len)));
        }
        shared.work(&mut Buffer::new(buffer_len));
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
    fn work(&self, buffer: &mut Buffer) {
        while let Some(piece) = self.take() {
            let outcome = self.piece(piece, buffer);
            if let Err(failure) = outcome {
                self.fail(failure);
            }
            self.pass_turn(piece);
        }
    }

    fn flush(&self, writeback: &Writeback) {
        if let Err(error) = writeback.run(self.copy.target) {
            self.fail(Failure::Write(self.done.load(Ordering::Relaxed), error));
        }
    }

    fn take(&self) -> Option<Piece> {
        let mut plan = lock(&self.plan);
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        match plan.next(self.copy.input) {
            Ok(piece) => piece,
            Err((offset, error)) => {
                drop(plan);
                self.fail(Failure::Status(offset, error));
                None
            }
        }
    }

    fn fail(&self, failure: Failure) {
        lock(&self.failure).get_or_insert(failure);
        self.stop.store(true, Ordering::Relaxed);
        // Held, so that nobody is between looking and waiting.
        let _turn = lock(&self.turn);
        self.turns.iter().for_each(Condvar::notify_all);
    }

    fn piece(&self, piece: Piece, buffer: &mut Buffer) -> Result<(), Failure> {
        let len = usize::try_from(piece.len).unwrap_or(usize::MAX);
        match piece.kind {
            Kind::Backing => return Ok(()),
            Kind::Zero if !self.copy.zeroes_as_data => {
                self.await_turn(piece);
                return self.zero(piece.offset, piece.len);
            }
            Kind::Zero => buffer.first(len).fill(0),
            Kind::Data => self.read(piece, buffer.first(len))?,
        }
        let data = &*buffer.first(len);
        let runs = self.runs(piece.offset, data);
        self.await_turn(piece);
        if self.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        if self.copy.compressed {
            self.write_compressed(piece.offset, data)?;
        } else {
            self.write(piece.offset, data, &runs)?;
        }
        if let Some(writeback) = &self.writeback {
            writeback.wrote(piece.len);
        }
        self.throttle(piece.len);
        let done = self.done.fetch_add(piece.len, Ordering::Relaxed) + piece.len;
        self.copy
            .progress
            .set((100.0 * done as f64 / self.copy.total.max(1) as f64) as f32);
        Ok(())
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

    /// Reads sector by sector what can be read.
    fn salvage(&self, offset: u64, buffer: &mut [u8], salvage: Salvage) {
        for (index, sector) in buffer.chunks_mut(SECTOR).enumerate() {
            let at = offset + (index * SECTOR) as u64;
            if let Err((_, error)) = self.copy.input.read(at, sector) {
                sector.fill(0);
                if !salvage.quiet {
                    let cause = crate::reason::cause(&error, self.copy.target.path());
                    crate::report::warning(format_args!(
                        "error while reading offset {at}: {cause}"
                    ));
                }
            }
        }
    }

    /// Cuts data into what is written and what is zeroes. The longer part of the work, so it comes before the turn.
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

    fn write(&self, offset: u64, data: &[u8], runs: &[(bool, usize)]) -> Result<(), Failure> {
        let (mut at, mut rest) = (offset, data);
        for &(is_data, len) in runs {
            let (now, later) = rest.split_at(len.min(rest.len()));
            if is_data {
                self.copy
                    .target
                    .write_at(at, now)
                    .map_err(|error| Failure::Write(offset, error))?;
            } else {
                self.zero(at, len as u64)?;
            }
            at += len as u64;
            rest = later;
        }
        Ok(())
    }

    /// Cluster by cluster, so that those of zeroes are left out.
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

    fn turn_of(&self, index: u64) -> Option<&Condvar> {
        let threads = self.turns.len().max(1) as u64;
        self.turns
            .get(usize::try_from(index % threads).unwrap_or(0))
    }

    /// Waits until every piece before this one has been written.
    fn await_turn(&self, piece: Piece) {
        let Some(own) = self.turn_of(piece.index).filter(|_| self.copy.in_order) else {
            return;
        };
        let mut turn = lock(&self.turn);
        while *turn != piece.index && !self.stop.load(Ordering::Relaxed) {
            turn = own.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn pass_turn(&self, piece: Piece) {
        if !self.copy.in_order {
            return;
        }
        // A piece that needed no writing still has to wait before it can pass the turn on.
        self.await_turn(piece);
        *lock(&self.turn) = piece.index + 1;
        if let Some(next) = self.turn_of(piece.index + 1) {
            next.notify_all();
        }
    }

    fn throttle(&self, len: u64) {
        let Some(rate) = self.copy.rate.filter(|&rate| rate > 0) else {
            return;
        };
        let written = self.written.fetch_add(len, Ordering::Relaxed) + len;
        let due = Duration::from_secs_f64(written as f64 / rate as f64);
        thread::sleep(due.saturating_sub(self.started.elapsed()));
    }
}
