//! Writes the journal: the engine adds groups, and the threads of requests and commits write them to the file.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::formats::qcow2::journal::log::RECORD;
use crate::formats::qcow2::journal::progress::{Progress, Reached};
use crate::storage::Storage;

/// The journal's file, and the groups that are not in it yet.
pub(crate) struct JournalWriter {
    file: Arc<dyn Storage>,
    session: u64,
    /// Where the image records how many groups the journal has; `None` for a journal of a former version.
    progress: Option<Progress>,
    waiting: Mutex<Waiting>,
    /// Held while groups are written to the file.
    writing: Mutex<()>,
    /// The groups added and the groups written, each as the number of the next one.
    added: AtomicU32,
    written: AtomicU32,
    /// A group could not be written.
    broken: AtomicBool,
}

/// Offsets and bytes, in order.
type Waiting = Vec<(u64, Vec<u8>)>;

impl JournalWriter {
    /// Continues behind the groups that the journal has.
    pub(crate) fn new(
        file: Arc<dyn Storage>,
        session: u64,
        (progress, groups): (Option<Progress>, u32),
    ) -> Self {
        Self {
            file,
            session,
            progress,
            waiting: Mutex::default(),
            writing: Mutex::default(),
            added: groups.into(),
            written: groups.into(),
            broken: false.into(),
        }
    }

    pub(super) fn session(&self) -> u64 {
        self.session
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a group.
    pub(super) fn add(&self, offset: u64, bytes: &[u8]) {
        let mut waiting = self.waiting();
        match waiting.last_mut() {
            Some((start, all)) if *start + all.len() as u64 == offset => all.extend(bytes),
            _ => waiting.push((offset, bytes.to_vec())),
        }
        self.added.fetch_add(1, Ordering::Release);
    }

    /// Writes the groups added so far; returns whether all of them are in the file.
    pub(crate) fn write(&self) -> bool {
        if self.written.load(Ordering::Acquire) != self.added.load(Ordering::Acquire) {
            let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let (taken, next) = {
                let mut waiting = self.waiting();
                (
                    std::mem::take(&mut *waiting),
                    self.added.load(Ordering::Acquire),
                )
            };
            // Groups behind one that could not be written must not be written either.
            if !taken.is_empty() && (!self.is_whole() || self.write_groups(taken, next).is_err()) {
                self.broken.store(true, Ordering::Release);
            }
            self.written.store(next, Ordering::Release);
        }
        self.is_whole()
    }

    fn write_groups(&self, groups: Waiting, next: u32) -> io::Result<()> {
        self.write_progress(next, u64::MAX)?;
        for (offset, mut bytes) in groups {
            bytes.extend([0; RECORD]);
            self.file.write(offset, &bytes.as_slice(), 0, bytes.len())?;
        }
        Ok(())
    }

    /// Records in the image that groups up to `next` are about to be written, and the length of its file, or `len` if
    /// that is less.
    fn write_progress(&self, next: u32, len: u64) -> io::Result<()> {
        let Some(progress) = &self.progress else {
            return Ok(());
        };
        let reached = Reached {
            written: self.written.load(Ordering::Acquire),
            next,
            len: progress.image().known_len().min(len),
        };
        progress.write(self.session, reached)
    }

    /// Changes the length of the image's file to `len`, by `set_len`, and records the new length before.
    pub(crate) fn set_len(
        &self,
        len: u64,
        set_len: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_progress(self.written.load(Ordering::Acquire), len)?;
        set_len()
    }

    /// Whether all groups could be written so far.
    pub(crate) fn is_whole(&self) -> bool {
        !self.broken.load(Ordering::Acquire)
    }

    pub(super) fn is_all_there(&self) -> bool {
        self.is_whole()
            && self.written.load(Ordering::Acquire) == self.added.load(Ordering::Acquire)
    }
}
