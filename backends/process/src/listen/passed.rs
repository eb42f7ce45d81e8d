//! The listening socket that a service manager passes to a program (sd_listen_fds(3)).

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::fcntl_getfl;
use rustix::io::{FdFlags, fcntl_setfd, ioctl_fionbio};
use rustix::net::SocketType;
use rustix::net::sockopt::{socket_acceptconn, socket_type};

/// The number of the first descriptor that is passed.
const FIRST: i32 = 3;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes the socket of this type that a service manager has passed to this process. It does not block, and children do
/// not inherit it. Returns `None` when there is no service manager, when it has passed nothing, and the second time.
///
/// # Errors
/// When something else was passed, or more than one descriptor.
pub fn passed(kind: SocketType) -> io::Result<Option<OwnedFd>> {
    let number = number(
        env::var_os("LISTEN_PID"),
        env::var_os("LISTEN_FDS"),
        std::process::id(),
    );
    match number {
        None => return Ok(None),
        Some(1) => {}
        Some(number) => return Err(wrong(&format!("{number} descriptors are passed, not one"))),
    }
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(None);
    }
    // SAFETY: the service manager has opened this descriptor for this process, as the variables say, and nothing else
    // here knows its number. This is done once. There is no safe way to name a descriptor by number.
    let socket = unsafe { OwnedFd::from_raw_fd(FIRST) };
    if fcntl_getfl(&socket).is_err() {
        // It is not open: there is nothing to close.
        std::mem::forget(socket);
        return Err(wrong("the descriptor that is to be passed is not open"));
    }
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    if socket_type(&socket) != Ok(kind) || socket_acceptconn(&socket) != Ok(true) {
        return Err(wrong(
            "what is passed is not a listening socket of this program's type",
        ));
    }
    ioctl_fionbio(&socket, true)?;
    Ok(Some(socket))
}

fn wrong(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("LISTEN_FDS: {why}"))
}

/// How many descriptors are passed, if they are for this process and not for one whose environment it has.
fn number(pid: Option<OsString>, descriptors: Option<OsString>, own: u32) -> Option<u32> {
    let number = |word: OsString| word.to_str()?.parse::<u32>().ok();
    if pid.and_then(number)? != own {
        return None;
    }
    descriptors.and_then(number).filter(|&number| number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_of_another_process_are_left_alone() {
        let word = |word: &str| Some(OsString::from(word));
        assert_eq!(number(word("7"), word("1"), 7), Some(1));
        assert_eq!(number(word("7"), word("2"), 7), Some(2));
        assert_eq!(number(word("6"), word("1"), 7), None);
        assert_eq!(number(None, word("1"), 7), None);
        assert_eq!(number(word("7"), word("0"), 7), None);
        assert_eq!(number(word("7"), word("x"), 7), None);
    }
}
