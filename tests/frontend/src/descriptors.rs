//! File descriptors: waiting for one, and those that give a program trouble.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

/// Waits until `fd` can be read, or until `patience` has passed. Returns whether it can.
pub fn readable(fd: &impl AsRawFd, patience: Duration) -> bool {
    // SAFETY: the descriptor is open, because its owner is borrowed. It is passed by number because `vmm_sys_util`'s
    // `EventFd` has no `AsFd`.
    let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    let timeout = Timespec::try_from(patience).unwrap();
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).unwrap() > 0
}

/// A TCP socket whose last close(2) waits for as long as `patience`, because it has bytes that nobody reads, or until
/// the stream is dropped.
#[must_use]
pub fn lingering(patience: Duration) -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (reader, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[0; 1 << 16]).is_ok() {}
    stream.set_nonblocking(false).unwrap();
    rustix::net::sockopt::set_socket_linger(&stream, Some(patience)).unwrap();
    (stream.into(), reader)
}

/// A pipe, reader and writer, that is full and blocks who writes to it.
#[must_use]
pub fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (read, write) = rustix::pipe::pipe().unwrap();
    rustix::fs::fcntl_setfl(&write, OFlags::WRONLY | OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&write, &[0; 4096]).is_ok() {}
    while rustix::io::write(&write, &[0]).is_ok() {}
    rustix::fs::fcntl_setfl(&write, OFlags::WRONLY).unwrap();
    (read, write)
}
