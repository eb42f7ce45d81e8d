//! Writes lines to standard error without ever waiting, whatever standard error is.
//!
//! How it does that depends on what standard error is:
//!
//! * A pipe, a FIFO, a terminal or a device is written by an open file description of our own with `O_NONBLOCK`, which
//!   nobody else shares and can change.
//! * A socket is written by `send` with `MSG_DONTWAIT`, a flag of the call.
//! * A file is written by `write`, which goes to the page cache.
//! * A pipe or device that cannot be opened again, because it is another user's or there is no `/proc`, is written by
//!   `pwritev2` with `RWF_NOWAIT`; before Linux 6.4 by `write` of at most `PIPE_BUF` bytes after `poll`, since a pipe that
//!   polls as writable has room for that many.
//!
//! The flags of descriptor 2 are not changed: its description is shared with the program that started this one.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::net::SendFlags;

/// The most bytes that a pipe takes in one piece or not at all (pipe(7)).
const PIPE_BUF: usize = 4096;

/// How lines are written.
#[derive(Debug)]
enum Way {
    /// To an open file description of our own that does not block.
    Own(OwnedFd),
    /// To a socket.
    Socket,
    /// To something that never waits for a reader.
    Plain,
    /// To something that may wait and could not be opened again.
    Shared,
}

static WAY: OnceLock<Way> = OnceLock::new();

/// Finds out what standard error is while the process may still open files. A second call does nothing.
pub(crate) fn prepare() {
    WAY.get_or_init(|| way(io::stderr().as_fd()));
}

/// Writes `label: message` as one line. Returns whether it was written; it is not if that had to wait, or if nobody can
/// read it.
pub(crate) fn write_line(label: &str, message: &str) -> bool {
    prepare();
    let way = WAY.get().unwrap_or(&Way::Shared);
    write(way, io::stderr().as_fd(), &line(label, message)).is_ok()
}

/// The same for the last line of a program, for which this waits a second if the reader is slow.
pub(crate) fn write_last_line(label: &str, message: &str) {
    const PATIENCE: Duration = Duration::from_secs(1);
    prepare();
    let way = WAY.get().unwrap_or(&Way::Shared);
    let stderr = io::stderr();
    let line = line(label, message);
    let start = Instant::now();
    while write(way, stderr.as_fd(), &line) == Err(Errno::AGAIN) {
        let left = PATIENCE.saturating_sub(start.elapsed());
        let left = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&left)) {
            Ok(1..) | Err(Errno::INTR) if start.elapsed() < PATIENCE => {}
            _ => return,
        }
    }
}

fn way(stderr: BorrowedFd<'_>) -> Way {
    let Ok(status) = rustix::fs::fstat(stderr) else {
        return Way::Plain;
    };
    match FileType::from_raw_mode(status.st_mode) {
        FileType::Socket => Way::Socket,
        FileType::Fifo | FileType::CharacterDevice => reopen().map_or(Way::Shared, Way::Own),
        _ => Way::Plain,
    }
}

/// Opens standard error again. Not for files: the new description would have an offset of its own and overwrite what
/// others have written.
fn reopen() -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open("/proc/self/fd/2", flags, Mode::empty())
}

fn write(way: &Way, stderr: BorrowedFd<'_>, line: &[u8]) -> Result<(), Errno> {
    match way {
        // A terminal may stop writers in the background (`stty tostop`), and a warning must not stop the guest.
        Way::Own(own) => crate::signals::without_stop(|| rustix::io::write(own, line)).map(drop),
        Way::Socket => {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            rustix::net::send(stderr, line, flags).map(drop)
        }
        Way::Plain => rustix::io::write(stderr, line).map(drop),
        Way::Shared => write_shared(stderr, line),
    }
}

fn write_shared(stderr: BorrowedFd<'_>, line: &[u8]) -> Result<(), Errno> {
    // u64::MAX stands for "no offset".
    let flags = ReadWriteFlags::NOWAIT;
    match rustix::io::pwritev2(stderr, &[IoSlice::new(line)], u64::MAX, flags) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::INVAL) => {}
        other => return other.map(drop),
    }
    let now = Timespec::default();
    match poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&now))? {
        0 => Err(Errno::AGAIN),
        _ => crate::signals::without_stop(|| rustix::io::write(stderr, line)).map(drop),
    }
}

/// Makes one line of at most `PIPE_BUF` bytes. A peer, an image or a guest may have chosen parts of the message, so
/// control characters are escaped, and it cannot look like several lines.
fn line(label: &str, message: &str) -> Vec<u8> {
    let mut line = format!("{label}: ");
    for character in message.chars() {
        // Room for the longest escape, the mark of what is cut, and the end of the line.
        if line.len() > PIPE_BUF - 16 {
            line.push('…');
            break;
        }
        match character {
            '\n' | '\t' => line.push(' '),
            other if other.is_control() => line.extend(other.escape_default()),
            other => line.push(other),
        }
    }
    line.push('\n');
    line.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::os::unix::net::UnixStream;

    /// Nobody reads, and the description blocks.
    fn full_pipe() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
        rustix::fs::fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
        while rustix::io::write(&writer, &[b'x'; PIPE_BUF]).is_ok() {}
        rustix::fs::fcntl_setfl(&writer, flags).unwrap();
        (reader, writer)
    }

    #[test]
    fn a_full_pipe_of_others_is_not_waited_for_and_keeps_its_flags() {
        let (reader, writer) = full_pipe();
        assert_eq!(
            write(&Way::Shared, writer.as_fd(), b"late\n"),
            Err(Errno::AGAIN)
        );

        rustix::io::read(&reader, &mut [0; PIPE_BUF]).unwrap();
        assert_eq!(write(&Way::Shared, writer.as_fd(), b"late\n"), Ok(()));
        let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
    }

    #[test]
    fn a_full_socket_is_not_waited_for_and_a_broken_one_ends_nothing() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        while write(&Way::Socket, ours.as_fd(), &[b'x'; PIPE_BUF]).is_ok() {}
        assert_eq!(
            write(&Way::Socket, ours.as_fd(), b"late\n"),
            Err(Errno::AGAIN)
        );
        drop(theirs);
        assert_eq!(
            write(&Way::Socket, ours.as_fd(), b"late\n"),
            Err(Errno::PIPE)
        );
    }

    #[test]
    fn a_file_is_written_where_its_description_stands() {
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(way(file.as_fd()), Way::Plain));
        let device = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        assert_eq!(
            write(&Way::Plain, device.as_fd(), b"late\n"),
            Err(Errno::NOSPC)
        );
    }

    #[test]
    fn a_message_is_one_line_of_bounded_length_without_control_characters() {
        assert_eq!(line("error", "a\nb\x1b[2Jc"), b"error: a b\\u{1b}[2Jc\n");
        let long = line("warning", &"\x1bé".repeat(9000));
        assert!(long.len() <= PIPE_BUF, "{}", long.len());
        assert!(String::from_utf8(long).unwrap().ends_with("…\n"));
    }
}
