//! The files of a backing chain while it is opened: finds loops, and bounds the length.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

/// The most images a chain may have, unless [`OpenOptions::max_depth`](crate::OpenOptions::max_depth) says otherwise.
pub(crate) const MAX_DEPTH: u32 = 64;

/// The files of a chain that were opened so far, whatever their names.
#[derive(Debug)]
pub(crate) struct VisitedFiles {
    /// By device and inode.
    files: Vec<(u64, u64)>,
    max_depth: u32,
}

/// Why a file cannot be part of a chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// It is part of the chain already.
    #[error("the backing chain loops")]
    Loop,
    /// The chain has as many images as it may have.
    #[error("the backing chain has more than {0} images")]
    TooLong(u32),
    /// The system does not say which file it is.
    #[error("cannot stat: {0}")]
    Io(#[from] io::Error),
}

impl VisitedFiles {
    /// No file yet, and at most so many.
    pub(crate) fn new(max_depth: u32) -> Self {
        Self {
            files: Vec::new(),
            max_depth,
        }
    }

    /// Adds the next file of the chain.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub(crate) fn add(&mut self, file: &File) -> Result<(), ChainError> {
        let id = identity(file)?;
        if self.files.contains(&id) {
            return Err(ChainError::Loop);
        }
        if self.files.len() >= self.max_depth as usize {
            return Err(ChainError::TooLong(self.max_depth));
        }
        self.files.push(id);
        Ok(())
    }

    /// Whether this is the file added last.
    pub(crate) fn is_last(&self, file: &File) -> io::Result<bool> {
        Ok(self.files.last() == Some(&identity(file)?))
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}
