//! System calls that move data between a file and guest memory, without a copy on the way.
//!
//! The guest can change its memory at any time, so no `&[u8]` of it may exist, and the functions of the standard
//! library and rustix take nothing else. The system calls themselves do not care.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::VolatileSlice;

use crate::chain::MAX_CHAIN;

/// preadv(2): fills `slices` from `file` at `offset`. Returns how many bytes; 0 is the end of the file.
///
/// # Errors
/// As preadv(2).
pub fn read_at(file: impl AsFd, slices: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    transfer(slices, |iovecs, count| {
        // SAFETY: see `transfer`; the offset does not concern memory.
        unsafe { libc::preadv(file.as_fd().as_raw_fd(), iovecs, count, offset) }
    })
}

/// pwritev(2): writes `slices` to `file` at `offset`. Returns how many bytes.
///
/// # Errors
/// As pwritev(2).
pub fn write_at(file: impl AsFd, slices: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    transfer(slices, |iovecs, count| {
        // SAFETY: see `transfer`; the offset does not concern memory.
        unsafe { libc::pwritev(file.as_fd().as_raw_fd(), iovecs, count, offset) }
    })
}

/// readv(2): fills `slices` from `file`, which may be a device or a socket. Returns how many bytes.
///
/// # Errors
/// As readv(2).
pub fn read(file: impl AsFd, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    transfer(slices, |iovecs, count| {
        // SAFETY: see `transfer`.
        unsafe { libc::readv(file.as_fd().as_raw_fd(), iovecs, count) }
    })
}

/// writev(2): writes `slices` to `file`, which may be a device or a socket. Returns how many bytes.
///
/// # Errors
/// As writev(2).
pub fn write(file: impl AsFd, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    transfer(slices, |iovecs, count| {
        // SAFETY: see `transfer`.
        unsafe { libc::writev(file.as_fd().as_raw_fd(), iovecs, count) }
    })
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Calls `call` with an array of the iovecs of `slices` and its length, which is at most what the kernel takes. The
/// array and the memory behind it live until `call` returns: the slices are borrowed, and their guards are held. The
/// kernel and the guest may write to the memory meanwhile, which a `VolatileSlice` allows.
fn transfer(
    slices: &[VolatileSlice<'_>],
    call: impl FnOnce(*const libc::iovec, libc::c_int) -> libc::ssize_t,
) -> io::Result<usize> {
    let guards: Vec<_> = slices
        .iter()
        .take(MAX_CHAIN)
        .map(VolatileSlice::ptr_guard_mut)
        .collect();
    let iovecs: Vec<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: guard.len(),
        })
        .collect();
    // MAX_CHAIN is IOV_MAX.
    let count = libc::c_int::try_from(iovecs.len()).unwrap_or(0);
    let moved = call(iovecs.as_ptr(), count);
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    #[test]
    fn data_moves_between_a_file_and_scattered_memory() {
        let memory: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        memory.write_slice(b"hello", GuestAddress(3)).unwrap();
        memory.write_slice(b"world", GuestAddress(0x800)).unwrap();
        let slice =
            |at, length| GuestMemoryBackend::get_slice(&memory, GuestAddress(at), length).unwrap();
        let file = tempfile::tempfile().unwrap();

        let written = write_at(&file, &[slice(0x800, 5), slice(3, 5)], 2).unwrap();
        assert_eq!(written, 10);
        let got = read_at(&file, &[slice(0x100, 3), slice(0x200, 100)], 2).unwrap();
        assert_eq!(got, 10);

        let mut seen = [0; 7];
        memory.read_slice(&mut seen, GuestAddress(0x200)).unwrap();
        assert_eq!(&seen, b"ldhello");
        assert!(read_at(&file, &[slice(0, 1)], u64::MAX).is_err());
    }

    #[test]
    fn a_stream_takes_and_gives_scattered_memory() {
        let memory: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        memory.write_slice(b"ping", GuestAddress(0)).unwrap();
        let slice =
            |at, length| GuestMemoryBackend::get_slice(&memory, GuestAddress(at), length).unwrap();
        let (a, b) = UnixStream::pair().unwrap();

        assert_eq!(write(&a, &[slice(2, 2), slice(0, 2)]).unwrap(), 4);
        assert_eq!(read(&b, &[slice(0x10, 1), slice(0x20, 9)]).unwrap(), 4);

        let mut seen = [0; 3];
        memory.read_slice(&mut seen, GuestAddress(0x20)).unwrap();
        assert_eq!(&seen, b"gpi");
    }
}
