//! An io_uring that moves data between files and guest memory without a copy, many operations at a time.
//!
//! The seccomp filter of the process does not see what the kernel does for an io_uring. So a ring is made before the
//! process is confined, with its files registered, and is restricted for good: it can read, write and sync the
//! registered files, and the kernel refuses everything else with EACCES. The confined process may call
//! io_uring_enter(2), but neither io_uring_setup(2) nor io_uring_register(2), so it can neither make another ring nor
//! change this one.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::fs::OFlags;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use crate::chain::{MAX_CHAIN, Segment};
use crate::error::RingError;

/// The operations that a ring is restricted to.
const OPERATIONS: [u8; 3] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
];

/// An operation in flight, with what the kernel uses until it has ended.
struct InFlight {
    token: u64,
    /// Where in `memory` the data is.
    _iovecs: Box<[libc::iovec]>,
    /// Keeps the memory mapped.
    _memory: Option<Arc<GuestMemoryMmap>>,
}

// SAFETY: only the kernel follows the iovecs. What they point to is kept mapped by `_memory`, which is `Send`.
unsafe impl Send for InFlight {}

/// The ring and its operations in flight.
pub struct Uring {
    ring: IoUring,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<usize>,
    /// Operations that are not submitted yet.
    queued: usize,
    ended: VecDeque<(u64, io::Result<usize>)>,
}

impl Uring {
    /// Makes a ring for up to `entries` operations at a time on `files`. An operation names a file by its index.
    ///
    /// # Errors
    /// When there is no io_uring here: an old kernel, or the sysctl `kernel.io_uring_disabled`.
    pub fn new(files: &[BorrowedFd<'_>], entries: u32) -> io::Result<Self> {
        // The kernel posts completions when the process enters it anyway, instead of interrupting the process.
        let ring = IoUring::builder()
            .setup_r_disabled()
            .setup_coop_taskrun()
            .dontfork()
            .build(entries)
            .or_else(|_| IoUring::builder().setup_r_disabled().build(entries))?;
        let files: Vec<File> = files.iter().map(reopen).collect::<io::Result<_>>()?;
        let numbers: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let submitter = ring.submitter();
        submitter.register_files(&numbers)?;
        let fixed = squeue::Flags::FIXED_FILE.bits();
        let mut restrictions = vec![
            Restriction::sqe_flags_required(fixed),
            Restriction::sqe_flags_allowed(fixed),
        ];
        restrictions.extend(OPERATIONS.map(Restriction::sqe_op));
        submitter.register_restrictions(&mut restrictions)?;
        submitter.register_enable_rings()?;
        let room = ring.params().sq_entries() as usize;
        Ok(Self {
            ring,
            in_flight: (0..room).map(|_| None).collect(),
            free: (0..room).rev().collect(),
            queued: 0,
            ended: VecDeque::new(),
        })
    }

    /// How many more operations there is room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Whether no operation is in flight, and every completion was taken.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.in_flight.len() && self.ended.is_empty()
    }

    /// Adds an operation that fills `segments` of `memory` from file number `file` at `offset`. Like readv(2), it may
    /// read less.
    ///
    /// # Errors
    /// When the segments are not in memory, or there is no room.
    pub fn read(
        &mut self,
        (file, offset): (u32, u64),
        memory: &Arc<GuestMemoryMmap>,
        segments: &[Segment],
        token: u64,
    ) -> Result<(), RingError> {
        let iovecs = iovecs(memory, segments)?;
        let entry = opcode::Readv::new(types::Fixed(file), iovecs.as_ptr(), count(&iovecs))
            .offset(offset)
            .build();
        self.push(entry, iovecs, Some(Arc::clone(memory)), token)
    }

    /// Adds an operation that writes `segments` of `memory` to file number `file` at `offset`. Like writev(2), it may
    /// write less.
    ///
    /// # Errors
    /// When the segments are not in memory, or there is no room.
    pub fn write(
        &mut self,
        place: (u32, u64),
        memory: &Arc<GuestMemoryMmap>,
        segments: &[Segment],
        token: u64,
    ) -> Result<(), RingError> {
        self.write_with(0, place, memory, segments, token)
    }

    /// As [`write`](Self::write), but with RWF_NOWAIT: the operation ends with EAGAIN if it had to wait, or with EAGAIN
    /// or EOPNOTSUPP if the file system cannot write to the page cache without waiting.
    ///
    /// # Errors
    /// When the segments are not in memory, or there is no room.
    pub fn write_nowait(
        &mut self,
        place: (u32, u64),
        memory: &Arc<GuestMemoryMmap>,
        segments: &[Segment],
        token: u64,
    ) -> Result<(), RingError> {
        self.write_with(libc::RWF_NOWAIT, place, memory, segments, token)
    }

    fn write_with(
        &mut self,
        flags: i32,
        (file, offset): (u32, u64),
        memory: &Arc<GuestMemoryMmap>,
        segments: &[Segment],
        token: u64,
    ) -> Result<(), RingError> {
        let iovecs = iovecs(memory, segments)?;
        let entry = opcode::Writev::new(types::Fixed(file), iovecs.as_ptr(), count(&iovecs))
            .offset(offset)
            .rw_flags(flags)
            .build();
        self.push(entry, iovecs, Some(Arc::clone(memory)), token)
    }

    /// Adds an operation that puts the data of file number `file` on the medium, as fdatasync(2) does.
    ///
    /// # Errors
    /// When there is no room.
    pub fn sync(&mut self, file: u32, token: u64) -> Result<(), RingError> {
        let entry = opcode::Fsync::new(types::Fixed(file))
            .flags(types::FsyncFlags::DATASYNC)
            .build();
        self.push(entry, Box::default(), None, token)
    }

    fn push(
        &mut self,
        entry: squeue::Entry,
        iovecs: Box<[libc::iovec]>,
        memory: Option<Arc<GuestMemoryMmap>>,
        token: u64,
    ) -> Result<(), RingError> {
        let full = || RingError::Device("more requests than io_uring has room for".to_owned());
        let place = self.free.pop().ok_or_else(full)?;
        let entry = entry.user_data(place as u64);
        // SAFETY: the entry points to `iovecs`, which is on the heap and stays in `in_flight` until the operation has
        // completed. The iovecs point into `memory`, which is kept for as long. The kernel and the guest may write to
        // that memory at any time: no Rust reference to it exists, only volatile accesses.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            self.free.push(place);
            return Err(full());
        }
        if let Some(entry) = self.in_flight.get_mut(place) {
            *entry = Some(InFlight {
                token,
                _iovecs: iovecs,
                _memory: memory,
            });
        }
        self.queued += 1;
        Ok(())
    }

    /// Submits the operations that were added. Many of them have ended when this returns.
    ///
    /// # Errors
    /// As io_uring_enter(2).
    pub fn submit(&mut self) -> io::Result<()> {
        while self.queued > 0 {
            match self.ring.submit() {
                Ok(taken) => self.queued -= taken.min(self.queued),
                Err(error) if is_temporary(&error) => {}
                Err(error) => return Err(error),
            }
            self.collect();
        }
        Ok(())
    }

    /// Waits until an operation has ended, if one is in flight.
    ///
    /// # Errors
    /// As io_uring_enter(2).
    pub fn wait(&mut self) -> io::Result<()> {
        self.submit()?;
        self.collect();
        while self.ended.is_empty() && !self.is_idle() {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if is_temporary(&error) => {}
                Err(error) => return Err(error),
            }
            self.collect();
        }
        Ok(())
    }

    /// Takes a completion: the token of the operation, and how many bytes it moved.
    pub fn take_ended(&mut self) -> Option<(u64, io::Result<usize>)> {
        if self.ended.is_empty() {
            self.collect();
        }
        self.ended.pop_front()
    }

    fn collect(&mut self) {
        for entry in self.ring.completion() {
            let place = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let Some(operation) = self.in_flight.get_mut(place).and_then(Option::take) else {
                continue;
            };
            self.free.push(place);
            let moved = usize::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(-entry.result()));
            self.ended.push_back((operation.token, moved));
        }
    }
}

impl AsFd for Uring {
    /// Readable when operations have ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the ring's, which is open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while self.free.len() < self.in_flight.len() {
            self.ended.clear();
            if self.wait().is_err() {
                // The kernel may still use what they own.
                std::mem::forget(std::mem::take(&mut self.in_flight));
                return;
            }
        }
    }
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("room", &self.room())
            .finish_non_exhaustive()
    }
}

/// Opens the same file again. The kernel tears a ring down some time after its process was killed, and until then the
/// registered files stay open; if they were those that hold the image's locks, the next process could not open the
/// image. (Nothing writes to the files by then: the kernel completes a dying process's operations on the page cache
/// before it closes its files.)
fn reopen(fd: &BorrowedFd<'_>) -> io::Result<File> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    let writable = flags.contains(OFlags::RDWR);
    OpenOptions::new()
        .read(true)
        .write(writable)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Whether the call can be repeated: a signal interrupted it, or the kernel lacks memory or room for completions at the
/// moment.
fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}

/// The iovecs of `segments`, up to the most that one operation takes. The caller sees a short read or write and adds
/// another operation.
fn iovecs(memory: &GuestMemoryMmap, segments: &[Segment]) -> Result<Box<[libc::iovec]>, RingError> {
    let mut iovecs = Vec::with_capacity(segments.len());
    for segment in segments {
        for slice in
            GuestMemoryBackend::get_slices(memory, segment.address, segment.length as usize)
        {
            let slice = slice.map_err(|_| RingError::OutsideMemory)?;
            iovecs.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
    }
    iovecs.truncate(MAX_CHAIN);
    Ok(iovecs.into())
}

fn count(iovecs: &[libc::iovec]) -> u32 {
    u32::try_from(iovecs.len()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    fn memory() -> Arc<GuestMemoryMmap> {
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap())
    }

    fn segment(address: u64, length: u32) -> Segment {
        Segment {
            address: GuestAddress(address),
            length,
        }
    }

    /// `None`, and a line that says so, where there is no io_uring.
    #[allow(
        clippy::disallowed_macros,
        reason = "a test reports to whoever runs it"
    )]
    fn ring(file: &std::fs::File, test: &str) -> Option<Uring> {
        Uring::new(&[file.as_fd()], 8)
            .inspect_err(|error| eprintln!("skipped: {test}: io_uring: {error}"))
            .ok()
    }

    #[test]
    fn many_operations_are_under_way_and_each_end_is_told() {
        let (memory, file) = (memory(), tempfile::tempfile().unwrap());
        let Some(mut ring) = ring(&file, "many_operations") else {
            return;
        };
        memory.write_slice(b"helloworld", GuestAddress(0)).unwrap();
        ring.write((0, 0), &memory, &[segment(5, 5), segment(0, 5)], 7)
            .unwrap();
        ring.sync(0, 8).unwrap();
        let mut ended = Vec::new();
        while !ring.is_idle() {
            ring.wait().unwrap();
            ended.extend(std::iter::from_fn(|| ring.take_ended()));
        }
        let mut ended: Vec<_> = ended
            .into_iter()
            .map(|(token, result)| (token, result.unwrap()))
            .collect();
        ended.sort_unstable();
        assert_eq!(ended, [(7, 10), (8, 0)]);

        for number in 0..ring.room() as u64 {
            let to = [segment(0x1000 * (number + 1), 3)];
            ring.read((0, number), &memory, &to, number).unwrap();
        }
        assert!(ring.sync(0, 99).is_err(), "there is no room");
        while !ring.is_idle() {
            ring.wait().unwrap();
            while let Some((_, moved)) = ring.take_ended() {
                assert_eq!(moved.unwrap(), 3);
            }
        }
        let mut seen = [0; 3];
        memory.read_slice(&mut seen, GuestAddress(0x4000)).unwrap();
        assert_eq!(&seen, b"ldh");
    }

    #[test]
    fn a_ring_that_is_dropped_waits_for_what_is_under_way() {
        let (memory, file) = (memory(), tempfile::tempfile().unwrap());
        let Some(mut ring) = ring(&file, "a_ring_that_is_dropped") else {
            return;
        };
        memory.write_slice(&[7; 512], GuestAddress(0)).unwrap();
        ring.write((0, 512), &memory, &[segment(0, 512)], 0)
            .unwrap();
        drop(ring);
        assert_eq!(file.metadata().unwrap().len(), 1024);
        assert_eq!(Arc::strong_count(&memory), 1);
    }

    #[test]
    fn whatever_else_is_asked_of_a_ring_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let Some(mut ring) = ring(&file, "whatever_else_is_asked") else {
            return;
        };
        let path = c"/etc/passwd".as_ptr();
        let raw = types::Fd(file.as_raw_fd());
        let mut byte = 0u8;
        let to = &raw mut byte;
        let asked = [
            opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path).build(),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            opcode::Connect::new(raw, std::ptr::null(), 0).build(),
            opcode::UnlinkAt::new(types::Fd(libc::AT_FDCWD), path).build(),
            opcode::Read::new(types::Fixed(0), to, 1).build(),
            opcode::Nop::new().build(),
            // What is allowed, on a file that was not registered.
            opcode::Fsync::new(raw).build(),
            opcode::Readv::new(raw, std::ptr::null(), 0).build(),
            // With more flags than the one.
            opcode::Fsync::new(types::Fixed(0))
                .build()
                .flags(squeue::Flags::ASYNC),
        ];
        for (number, entry) in asked.into_iter().enumerate() {
            ring.push(entry, Box::default(), None, number as u64)
                .unwrap();
            ring.wait().unwrap();
            let (_, ended) = ring.take_ended().unwrap();
            let error = ended.unwrap_err().raw_os_error();
            assert_eq!(error, Some(libc::EACCES), "operation {number}");
        }
        let submitter = ring.ring.submitter();
        let changed = submitter.register_files_update(0, &[file.as_raw_fd()]);
        assert_eq!(
            changed.unwrap_err().raw_os_error(),
            Some(libc::EACCES),
            "the files are the files"
        );
    }
}
