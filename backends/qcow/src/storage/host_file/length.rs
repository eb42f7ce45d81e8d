//! How long a file is known to be, and whether somebody else has made it shorter.
//!
//! What was cut off reads as zeroes once the file is longer again, as by a write beyond the cut. So before each request
//! that can do that, and before each sync, the file's length is compared with what it must be; that it was shorter once
//! is never forgotten. One call of lseek(2) for that takes a tenth of what a short write takes. A file that somebody
//! else makes shorter and longer again between two such calls looks unchanged.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

/// The length of an open file.
#[derive(Debug)]
pub(super) struct Length {
    known: AtomicU64,
    /// Shared while this process makes the file longer, until the new length is recorded; exclusive while it makes the
    /// file shorter, or must be sure that it does not.
    changes: RwLock<()>,
    cut: OnceLock<Truncation>,
}

/// Somebody else made the file shorter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Truncation {
    known: u64,
    /// What was left when it was noticed. Less may have been, if a write was under way.
    left: u64,
}

/// What a range of a file that was cut can be read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remains {
    /// As it is, where it is no hole: those may have come with a write beyond the cut.
    Data,
    /// As nothing: it is lost.
    Nothing,
    /// As it is: the file never held it.
    Never,
}

impl Truncation {
    pub(super) fn error(self) -> io::Error {
        io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!(
                "somebody else made the file shorter while it was open: of {} bytes, {} were left",
                self.known, self.left
            ),
        )
    }

    pub(super) fn remains(self, offset: u64, len: u64) -> Remains {
        match offset {
            _ if offset.saturating_add(len) <= self.left => Remains::Data,
            _ if offset < self.known => Remains::Nothing,
            _ => Remains::Never,
        }
    }

    /// How much was left.
    pub(super) fn left(self) -> u64 {
        self.left
    }
}

impl Length {
    pub(super) fn new(len: u64) -> Self {
        Self {
            known: len.into(),
            changes: RwLock::new(()),
            cut: OnceLock::new(),
        }
    }

    pub(super) fn known(&self) -> u64 {
        self.known.load(Ordering::Acquire)
    }

    /// What is known to have been cut off.
    pub(super) fn cut(&self) -> Option<Truncation> {
        self.cut.get().copied()
    }

    /// Compares what is known with what `len` finds.
    ///
    /// # Errors
    /// The file is shorter, or was once; or `len` failed.
    pub(super) fn check(&self, len: impl Fn() -> io::Result<u64>) -> io::Result<()> {
        if let Some(cut) = self.cut() {
            return Err(cut.error());
        }
        let known = self.known();
        if len()? >= known {
            return Ok(());
        }
        // Unless it is this process that makes it shorter.
        let _alone = self.changes.write().unwrap_or_else(PoisonError::into_inner);
        let (known, left) = (self.known(), len()?);
        if left >= known {
            return Ok(());
        }
        Err(self.cut.get_or_init(|| Truncation { known, left }).error())
    }

    /// Runs a change after which the file has at least `end` bytes.
    pub(super) fn reach<T, E>(
        &self,
        end: u64,
        change: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if end <= self.known() {
            return change();
        }
        let _shared = self.changes.read().unwrap_or_else(PoisonError::into_inner);
        let changed = change()?;
        self.known.fetch_max(end, Ordering::AcqRel);
        Ok(changed)
    }

    /// Gives the file another length by `set_len`, if `wanted` says which when nobody else here changes it.
    pub(super) fn set(
        &self,
        wanted: impl FnOnce() -> io::Result<Option<u64>>,
        set_len: impl FnOnce(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let _alone = self.changes.write().unwrap_or_else(PoisonError::into_inner);
        let Some(len) = wanted()? else {
            return Ok(());
        };
        // Whoever reads meanwhile finds an end where one is to be.
        let before = self.known.fetch_min(len, Ordering::AcqRel);
        let done = set_len(len);
        let known = if done.is_ok() { len } else { before };
        self.known.store(known, Ordering::Release);
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_others_cut_off_is_a_loss_and_it_stays_one() {
        let length = Length::new(100);
        length.set(|| Ok(Some(50)), |_| Ok(())).unwrap();
        length.check(|| Ok(50)).unwrap();
        length.reach(80, || io::Result::Ok(())).unwrap();
        length.reach(90, || Err::<(), _>(())).unwrap_err();
        length.check(|| Ok(80)).unwrap();
        assert!(length.cut().is_none());

        length.check(|| Ok(79)).unwrap_err();
        let error = length.check(|| Ok(1000)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let cut = length.cut().unwrap();
        let remains = |offset, len| cut.remains(offset, len);
        assert_eq!(remains(0, 79), Remains::Data);
        assert_eq!(remains(0, 80), Remains::Nothing);
        assert_eq!(remains(79, 1), Remains::Nothing);
        assert_eq!(remains(80, 1), Remains::Never);
    }

    #[test]
    fn a_length_that_cannot_be_set_stays_what_it_was() {
        let length = Length::new(100);
        let fails = |_| Err(io::Error::from_raw_os_error(5));
        length.set(|| Ok(Some(50)), fails).unwrap_err();
        assert_eq!(length.known(), 100);
        length.set(|| Ok(None), fails).unwrap();
    }

    #[test]
    fn whoever_looks_while_the_file_changes_here_sees_no_loss() {
        let length = Length::new(0);
        let file = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let change = scope.spawn(|| {
                for _ in 0..20_000 {
                    let set_len = |len| {
                        file.store(len, Ordering::SeqCst);
                        Ok(())
                    };
                    length.reach(100, || set_len(100)).unwrap();
                    length.set(|| Ok(Some(10)), set_len).unwrap();
                }
            });
            while !change.is_finished() {
                length.check(|| Ok(file.load(Ordering::SeqCst))).unwrap();
            }
        });
    }
}
