//! Executes requests by the image library's own calls, which may wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_daemon::{Chain, RecoveryArea, RingError};
use qcow::{Destination, Image, Source};
use vm_memory::GuestMemoryMmap;

use crate::completions::{Completion, Completions};
use crate::memory::GuestBuffers;
use crate::request::{HEADER, Limits, Range, Request, Status, status_offset};

/// A request to execute, with what its completion needs.
pub(crate) struct Job {
    /// The request's slot in its queue.
    pub(crate) slot: usize,
    pub(crate) chain: Chain,
    pub(crate) request: Request,
    pub(crate) memory: Arc<GuestMemoryMmap>,
    /// The completions of its queue.
    pub(crate) completions: Arc<Completions>,
}

/// The image and what requests need to know of it. All threads share it.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) image: Image,
    pub(crate) limits: Limits,
    /// The driver does not flush, so each write is on the medium before it completes. (virtio 1.2, 5.2.5.2)
    write_through: AtomicBool,
    /// Where the next process learns that a flush failed. The frontend can change it, and so make this guest's flushes
    /// fail, no more.
    recovery: Mutex<Option<RecoveryArea>>,
    /// The user was warned that the frontend shares memory that is gone.
    memory_is_gone: AtomicBool,
}

/// Why a request failed.
pub(crate) trait Failure: std::fmt::Display {
    /// The errno.
    fn number(&self) -> Option<i32>;
}

impl Failure for qcow::Error {
    fn number(&self) -> Option<i32> {
        self.raw_os_error()
    }
}

impl Failure for std::io::Error {
    fn number(&self) -> Option<i32> {
        self.raw_os_error()
    }
}

/// The first word of the recovery area once a flush has failed ("blkhdfsf"). The kernel reports the failure only once,
/// so the next process would not learn of it.
const FLUSH_FAILED: u64 = 0x626c_6b68_6466_7366;

/// The data of a request.
enum Data<'a> {
    /// The request reads the disk.
    In(&'a mut dyn Destination),
    /// The request writes the disk.
    Out(&'a dyn Source),
    /// The request has no data.
    None,
}

/// Whether the request changes nothing on the disk.
pub(crate) fn is_read(request: &Request) -> bool {
    matches!(request, Request::Read(_) | Request::GetId)
}

impl Disk {
    pub(crate) fn new(image: Image, limits: Limits) -> Self {
        Self {
            image,
            limits,
            write_through: AtomicBool::new(true),
            recovery: Mutex::new(None),
            memory_is_gone: AtomicBool::new(false),
        }
    }

    /// Takes the recovery area. If a flush of an earlier process failed, all flushes of this one fail, too.
    pub(crate) fn set_recovery_area(&self, area: RecoveryArea) {
        if area.load(0) == FLUSH_FAILED {
            let error = std::io::Error::other("before this program was started again");
            self.image.flush_failed(&error);
        }
        *self.recovery_area() = Some(area);
        self.note_failed_flush();
    }

    /// The frontend is gone, and its recovery area with it.
    pub(crate) fn forget_recovery_area(&self) {
        self.memory_is_gone.store(false, Ordering::Relaxed);
        *self.recovery_area() = None;
    }

    fn recovery_area(&self) -> MutexGuard<'_, Option<RecoveryArea>> {
        self.recovery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_failed_flush(&self) {
        if let Some(area) = &*self.recovery_area()
            && self.image.flush_error().is_some()
        {
            area.store(0, FLUSH_FAILED);
        }
    }

    pub(crate) fn set_write_through(&self, write_through: bool) {
        self.write_through.store(write_through, Ordering::Relaxed);
    }

    pub(crate) fn is_write_through(&self) -> bool {
        self.write_through.load(Ordering::Relaxed)
    }

    /// The status of a request with this result. Warns the user if it failed.
    pub(crate) fn status<E: Failure>(&self, result: Result<(), E>) -> Status {
        match result {
            Ok(()) => Status::Ok,
            Err(error) => {
                // Before the driver sees the status.
                self.note_failed_flush();
                // All requests with memory that is gone fail alike: one warning is enough, and leaves room for others.
                let is_gone = error.number() == Some(libc::EFAULT);
                if !is_gone || !self.memory_is_gone.swap(true, Ordering::Relaxed) {
                    bulkhead_daemon::warn(&error.to_string());
                }
                Status::IoError
            }
        }
    }

    /// Executes requests. Once the driver sees that a write is completed, it must survive if this process is killed, so
    /// the image is secured before this returns, once for all of the requests.
    pub(crate) fn execute_all(
        &self,
        jobs: impl Iterator<Item = Job>,
    ) -> Vec<(Arc<Completions>, Completion)> {
        let mut changed = false;
        let mut all: Vec<(Arc<Completions>, Completion)> = jobs
            .map(|job| {
                changed |= !is_read(&job.request);
                let done = Completion {
                    status: self.execute_one(&job),
                    slot: job.slot,
                    chain: job.chain,
                };
                (job.completions, done)
            })
            .collect();
        if changed && self.status(self.image.secure()) == Status::IoError {
            for (_, done) in &mut all {
                done.status = done.status.clone().and(Ok(Status::IoError));
            }
        }
        all
    }

    fn execute_one(&self, job: &Job) -> Result<Status, RingError> {
        let (readable, writable) = (job.chain.readable(), job.chain.writable());
        let result = match &job.request {
            Request::Read(_) => {
                let length = status_offset(&job.chain)?;
                let mut buffers = GuestBuffers::new(&job.memory, writable, 0, length)?;
                self.execute(&job.request, Data::In(&mut buffers))
            }
            Request::Write(_) => {
                let length = readable.length().saturating_sub(HEADER);
                let buffers = GuestBuffers::new(&job.memory, readable, HEADER, length)?;
                self.execute(&job.request, Data::Out(&buffers))
            }
            _ => self.execute(&job.request, Data::None),
        };
        Ok(self.status(result))
    }

    fn execute(&self, request: &Request, data: Data<'_>) -> qcow::Result<()> {
        let image = &self.image;
        match (request, data) {
            (Request::Read(range), Data::In(destination)) => {
                return image.read_into(range.offset, destination);
            }
            (Request::Write(range), Data::Out(source)) => image.write_from(range.offset, source)?,
            (Request::Flush, _) => return image.flush(),
            (Request::Discard(ranges), _) => {
                for &Range { offset, length } in ranges {
                    image.discard(offset, length)?;
                }
            }
            (Request::WriteZeroes(ranges), _) => {
                for &(Range { offset, length }, may_unmap) in ranges {
                    image.write_zeroes(offset, length, may_unmap)?;
                }
            }
            // The request is none of the image's.
            _ => return Ok(()),
        }
        if self.is_write_through() {
            image.flush()?;
        }
        Ok(())
    }
}
