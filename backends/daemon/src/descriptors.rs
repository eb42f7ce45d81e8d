//! Descriptors that came with a message and were not taken from it yet.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, FileType, StatxFlags, statx};

/// The most threads that close descriptors at a time.
const MAX_CLOSING: usize = 16;

static CLOSING: AtomicUsize = AtomicUsize::new(0);

/// A list that closes its descriptors when it is dropped, on a thread of its own: the peer can make close(2) wait, by a
/// TCP socket with unsent data (`SO_LINGER`) or a file of a file system that it serves.
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

    /// Whether each is a regular file. The check itself cannot wait.
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
        // The descriptors stay open until the process ends. If they become too many, messages with descriptors are
        // refused.
        if let Ok(mut files) = files.lock() {
            files.drain(..).for_each(std::mem::forget);
        }
    }
}
