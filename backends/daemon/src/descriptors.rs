//! Descriptors that came with a message and that nobody has taken.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, FileType, StatxFlags, statx};

/// How many threads may close descriptors at a time.
const MAX_CLOSING: usize = 16;

static CLOSING: AtomicUsize = AtomicUsize::new(0);

/// Closes what is left in it, on a thread of its own: close(2) may wait as long as the peer likes, for what a TCP socket has not sent
/// (`SO_LINGER`) or for a file system that the peer serves.
#[derive(Debug, Default)]
pub(crate) struct Descriptors(Vec<OwnedFd>);

impl Descriptors {
    pub(crate) fn extend(&mut self, files: impl Iterator<Item = OwnedFd>) {
        self.0.extend(files);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn pop(&mut self) -> Option<OwnedFd> {
        self.0.pop()
    }

    pub(crate) fn take(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.0)
    }

    /// Whether each is a regular file, which is not waited for to be told.
    pub(crate) fn are_regular(&self) -> bool {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        self.0.iter().all(|fd| {
            statx(fd, c"", flags, StatxFlags::TYPE)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.stx_mode.into()).is_file())
        })
    }

    /// Closes all of them.
    pub(crate) fn clear(&mut self) {
        drop(std::mem::take(self));
    }
}

impl From<OwnedFd> for Descriptors {
    fn from(fd: OwnedFd) -> Self {
        Self(vec![fd])
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        let files = self.take();
        if files.is_empty() {
            return;
        }
        let files = Arc::new(Mutex::new(files));
        let theirs = Arc::clone(&files);
        let close = move || {
            let files = theirs.lock().map(|mut files| std::mem::take(&mut *files));
            drop(files);
            CLOSING.fetch_sub(1, Ordering::Relaxed);
        };
        let free = CLOSING.fetch_add(1, Ordering::Relaxed) < MAX_CLOSING;
        let builder = std::thread::Builder::new().name("closing".to_owned());
        if free && builder.stack_size(64 << 10).spawn(close).is_ok() {
            return;
        }
        CLOSING.fetch_sub(1, Ordering::Relaxed);
        // They stay open until the process ends. Where that becomes too many, messages with descriptors are refused.
        if let Ok(mut files) = files.lock() {
            files.drain(..).for_each(std::mem::forget);
        }
    }
}
