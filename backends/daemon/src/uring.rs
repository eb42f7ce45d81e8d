//! An io_uring for requests of a guest: data moves between files that were registered at the start and guest memory, many requests at a
//! time, with no copy on the way.
//!
//! What the kernel does for a ring it does past the seccomp filter of the process. So a ring of this kind is made before the process
//! is confined, and is told for good what may be asked of it: to read, write and sync, and only with the files that were registered.
//! Everything else is refused with EACCES, whoever writes to the ring; and the calls that make or change rings, io_uring_setup(2) and
//! io_uring_register(2), belong to no list of allowed system calls. io_uring_enter(2) does.

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

/// All that may be asked of a ring.
const OPERATIONS: [u8; 3] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
];

/// What the kernel uses until an operation has ended.
struct Flight {
    token: u64,
    /// Where in `memory` the data is.
    _iovecs: Box<[libc::iovec]>,
    /// Keeps that mapped.
    _memory: Option<Arc<GuestMemoryMmap>>,
}

// SAFETY: the iovecs are for the kernel, nobody here follows them; what they point to is kept by `_memory`, which may be sent.
unsafe impl Send for Flight {}

/// The ring, and what is under way in it.
pub struct Uring {
    ring: IoUring,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// Operations that the kernel has not been told of yet.
    queued: usize,
    ended: VecDeque<(u64, io::Result<usize>)>,
}

impl Uring {
    /// Makes a ring for up to `entries` operations at a time on `files`, which operations name by their position.
    ///
    /// # Errors
    /// When there is no io_uring here: an old kernel, or the sysctl `kernel.io_uring_disabled`.
    pub fn new(files: &[BorrowedFd<'_>], entries: u32) -> io::Result<Self> {
        // Completions are handled when the process enters the kernel anyway, not by interrupting it.
        let ring = IoUring::builder()
            .setup_r_disabled()
            .setup_coop_taskrun()
            .dontfork()
            .build(entries)
            .or_else(|_| IoUring::builder().setup_r_disabled().build(entries))?;
        let files: Vec<File> = files.iter().map(anew).collect::<io::Result<_>>()?;
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
            flights: (0..room).map(|_| None).collect(),
            free: (0..room).rev().collect(),
            queued: 0,
            ended: VecDeque::new(),
        })
    }

    /// How many more operations may be begun.
    #[must_use]
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Whether no operation is under way, nor one's end untold.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.flights.len() && self.ended.is_empty()
    }

    /// Begins to fill `segments` of `memory` from file number `file` at `offset`. As with readv(2), less may come.
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

    /// Begins to write `segments` of `memory` to file number `file` at `offset`. As with writev(2), less may be written.
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

    /// As [`write`](Self::write), but the operation ends with EAGAIN where it had to wait, or where the file system does not write
    /// to page cache without a thread that may.
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

    /// Begins to put the data of file number `file` on the medium, as fdatasync(2) does.
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
        // SAFETY: the entry points to `iovecs`, which is on the heap and stays there in `flights` until the kernel says that the
        // operation has ended; the iovecs lie in `memory`, which is kept just as long, and that others, the kernel among them, write
        // to guest memory at any time is known to all who use it: nobody has a reference to it.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            self.free.push(place);
            return Err(full());
        }
        if let Some(flight) = self.flights.get_mut(place) {
            *flight = Some(Flight {
                token,
                _iovecs: iovecs,
                _memory: memory,
            });
        }
        self.queued += 1;
        Ok(())
    }

    /// Tells the kernel of the operations begun; many of them have ended when this returns.
    ///
    /// # Errors
    /// As io_uring_enter(2).
    pub fn submit(&mut self) -> io::Result<()> {
        while self.queued > 0 {
            match self.ring.submit() {
                Ok(taken) => self.queued -= taken.min(self.queued),
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
            self.collect();
        }
        Ok(())
    }

    /// Waits until an operation ends, if one is under way.
    ///
    /// # Errors
    /// As io_uring_enter(2).
    pub fn wait(&mut self) -> io::Result<()> {
        self.submit()?;
        self.collect();
        while self.ended.is_empty() && !self.is_idle() {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
            self.collect();
        }
        Ok(())
    }

    /// The token of an operation that has ended, and how many bytes it moved.
    pub fn take_ended(&mut self) -> Option<(u64, io::Result<usize>)> {
        if self.ended.is_empty() {
            self.collect();
        }
        self.ended.pop_front()
    }

    fn collect(&mut self) {
        for entry in self.ring.completion() {
            let place = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let Some(flight) = self.flights.get_mut(place).and_then(Option::take) else {
                continue;
            };
            self.free.push(place);
            let moved = usize::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(-entry.result()));
            self.ended.push_back((flight.token, moved));
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
        while self.free.len() < self.flights.len() {
            self.ended.clear();
            if self.wait().is_err() {
                // The kernel may still use them.
                std::mem::forget(std::mem::take(&mut self.flights));
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

/// The same file, opened once more. A ring is taken down some time after its process was killed, and until then what was registered with
/// it stays open: a lock that belongs to the open file would keep the next process out. (By then nothing is done to the files any more:
/// the kernel ends what a dying process has under way in page cache before it closes its files.)
fn anew(fd: &BorrowedFd<'_>) -> io::Result<File> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    let writable = flags.contains(OFlags::RDWR);
    OpenOptions::new()
        .read(true)
        .write(writable)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// It goes away by itself: a signal, or memory or completions that the kernel has to get rid of first.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}

/// Where `segments` are. What is more than one operation takes is left out: as with readv(2), that is for another one.
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
