//! Syncs of an image's files.
//!
//! The kernel reports a failed write-back to one fdatasync of an open file, and to none after it: the next one
//! succeeds, and what was lost stays lost. So whether one has failed is kept here, for all files of an image: from then
//! on none succeeds until the image is opened anew. And a file is synced by one caller at a time: of two at once, one
//! would get the error, and the other would report as durable what is not.

use std::io;
use std::sync::{Arc, OnceLock};

use crate::storage::group_commit::GroupCommit;
use crate::storage::{Filter, Storage};

/// The first sync of an image's files that failed, if one did. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct SyncState(Arc<OnceLock<(io::ErrorKind, String)>>);

impl SyncState {
    /// # Errors
    /// A sync has failed.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.0.get() {
            None => Ok(()),
            Some((kind, why)) => Err(io::Error::new(
                *kind,
                format!(
                    "an earlier flush failed ({why}), and what it was to make durable may be lost"
                ),
            )),
        }
    }

    /// A sync has failed; the first error is kept.
    pub(crate) fn fail(&self, error: &io::Error) {
        self.0.get_or_init(|| (error.kind(), error.to_string()));
    }
}

/// The syncs of one file of an image: one at a time.
#[derive(Debug, Default)]
struct Syncs {
    commits: GroupCommit,
    state: SyncState,
}

/// A file of an image, whose syncs obey the rules above.
pub(crate) struct Synced {
    file: Arc<dyn Storage>,
    syncs: Arc<Syncs>,
}

impl Synced {
    pub(crate) fn new(file: Arc<dyn Storage>, state: &SyncState) -> (Self, FileSyncs) {
        let syncs = Arc::new(Syncs {
            commits: GroupCommit::default(),
            state: state.clone(),
        });
        let of_file = FileSyncs(Arc::clone(&syncs));
        (Self { file, syncs }, of_file)
    }
}

/// The syncs of a file, for callers that do their own.
#[derive(Clone, Debug)]
pub(crate) struct FileSyncs(Arc<Syncs>);

/// A flush for callers that do their own I/O: an fdatasync of each of these files, which are those of
/// [`crate::Image::files`]. Until this is dropped, nobody else syncs them.
///
/// If one fails, call [`crate::Image::flush_failed`]; if all succeed, [`Flush::ended`]. Without that, the flush counts
/// as failed.
#[derive(Debug)]
pub struct Flush {
    files: Vec<usize>,
    commits: Vec<(FileSyncs, u64)>,
}

impl Flush {
    /// Nothing to do.
    pub(crate) fn nothing() -> Self {
        Self {
            files: Vec::new(),
            commits: Vec::new(),
        }
    }

    /// Of these files; `None` if one of them is being synced.
    pub(crate) fn begin(files: impl IntoIterator<Item = (usize, FileSyncs)>) -> Option<Self> {
        let mut flush = Self::nothing();
        for (file, syncs) in files {
            match syncs.0.commits.try_begin() {
                Some(commit) => {
                    flush.files.push(file);
                    flush.commits.push((syncs, commit));
                }
                None => {
                    flush.end(false);
                    return None;
                }
            }
        }
        Some(flush)
    }

    /// The files, by their numbers.
    pub fn files(&self) -> &[usize] {
        &self.files
    }

    /// All files were synced.
    ///
    /// # Errors
    /// A flush of the image has failed meanwhile.
    pub fn ended(mut self) -> io::Result<()> {
        let state = self.commits.first().map(|(syncs, _)| &syncs.0.state);
        let checked = state.map_or(Ok(()), SyncState::check);
        self.end(checked.is_ok());
        checked
    }

    fn end(&mut self, succeeded: bool) {
        for (syncs, commit) in self.commits.drain(..) {
            syncs.0.commits.end(commit, succeeded);
        }
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        let unknown = io::Error::other("it was given up");
        for (syncs, _) in &self.commits {
            syncs.0.state.fail(&unknown);
        }
        self.end(false);
    }
}

impl Filter for Synced {
    fn storage(&self) -> &dyn Storage {
        &*self.file
    }

    fn sync(&self) -> io::Result<()> {
        let state = &self.syncs.state;
        state.check()?;
        if let Some(commit) = self.syncs.commits.begin_unless_covered() {
            state.check()?;
            self.file.sync().inspect_err(|error| state.fail(error))?;
            commit.succeeded();
        }
        state.check()
    }
}
