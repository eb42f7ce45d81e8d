//! A target that is written sequentially: a pipe, a socket or a character device. Only raw images can be.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use qcow::{Destination, Source, Storage};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;

use super::name::End;
use crate::signals::Signals;

/// Interval of the attempts to open a FIFO that has no reader yet.
const FIFO_POLL: Duration = Duration::from_millis(20);

/// The most zeroes of one write.
const ZEROES: usize = 64 << 10;

/// The stream. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Stream(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    out: Mutex<Out>,
    /// Length of the image.
    len: AtomicU64,
}

#[derive(Debug)]
struct Out {
    file: File,
    /// Bytes written so far.
    position: u64,
}

impl Stream {
    /// Opens the target. A FIFO without a reader is waited for; a signal ends the process meanwhile.
    ///
    /// # Errors
    /// When it cannot be opened for writing.
    pub(super) fn open(end: &End, signals: &Signals) -> io::Result<Self> {
        let file = match end.standard() {
            // A socket cannot be opened through /proc.
            Some(descriptor) => File::from(descriptor?),
            None => open(end.path(), signals)?,
        };
        if file.is_terminal() {
            return Err(io::Error::other("it is a terminal"));
        }
        let out = Out { file, position: 0 };
        Ok(Self(Arc::new(Inner {
            out: Mutex::new(out),
            len: AtomicU64::new(0),
        })))
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.0.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes zeroes up to the length of the image.
    pub(super) fn complete(&self) -> io::Result<()> {
        let len = self.0.len.load(Ordering::Relaxed);
        self.out().zeroes_until(len)
    }
}

fn open(path: &Path, signals: &Signals) -> io::Result<File> {
    let file = loop {
        let opened = File::options()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path);
        match opened {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) && is_fifo(path) => {
                signals.sleep(FIFO_POLL);
            }
            opened => break opened?,
        }
    };
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    Ok(file)
}

fn is_fifo(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
}

impl Out {
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.position += count as u64;
                    bytes = bytes.get(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Another process that shares the open file has set O_NONBLOCK.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
                    // The next write returns the error, if there is one.
                    let _ = poll(&mut fds, None);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn zeroes_until(&mut self, end: u64) -> io::Result<()> {
        let zeroes = [0; ZEROES];
        while let Some(rest) = end.checked_sub(self.position).filter(|&rest| rest > 0) {
            let len = usize::try_from(rest).unwrap_or(ZEROES).min(ZEROES);
            self.write(zeroes.get(..len).unwrap_or_default())?;
        }
        Ok(())
    }
}

impl Storage for Stream {
    fn read(&self, _: u64, _: &mut dyn Destination, _: usize, _: usize) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ESPIPE))
    }

    fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> io::Result<()> {
        let mut out = self.out();
        if offset < out.position {
            return Err(io::Error::from_raw_os_error(libc::ESPIPE));
        }
        out.zeroes_until(offset)?;
        let mut bytes = vec![0; len];
        src.get(at, &mut bytes);
        out.write(&bytes)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len.load(Ordering::Relaxed))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.len.store(len, Ordering::Relaxed);
        Ok(())
    }

    /// Does nothing: the gap before the next data, and the rest at the end, are written as zeroes.
    fn write_zeroes(&self, offset: u64, _: u64, _: bool) -> io::Result<()> {
        match offset < self.out().position {
            true => Err(io::Error::from_raw_os_error(libc::ESPIPE)),
            false => Ok(()),
        }
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let len = self.len()?;
        Ok((offset < len).then_some((offset, len)))
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(0)
    }
}

/// Whether the name leads to standard output, unless that is a character device.
pub(crate) fn is_standard_output(path: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let Ok(target) = std::fs::metadata(path) else {
        return false;
    };
    let out = io::stdout();
    let Ok(out) = out.as_fd().try_clone_to_owned() else {
        return false;
    };
    let is_same = File::from(out)
        .metadata()
        .is_ok_and(|out| (out.dev(), out.ino()) == (target.dev(), target.ino()));
    is_same && !target.file_type().is_char_device()
}
