//! Copying with copy_file_range (`convert -C`), with which a file system can share extents.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use qcow::{Image, Place, Source};
use rustix::fs::copy_file_range;

use super::input::Position;

/// Why an offloaded copy failed.
pub(super) enum Failure {
    Read(qcow::Error),
    Write(qcow::Error),
}

/// Copies `len` bytes to `at` of the target. `false` if that is impossible, and the caller must read and write them.
pub(super) fn copy(
    from: &Position<'_>,
    len: usize,
    target: &Image,
    at: u64,
    zero: impl Fn(u64, u64) -> Result<(), qcow::Error>,
) -> Result<bool, Failure> {
    let image = from.disk.0;
    let end = from.offset.checked_add(len as u64);
    if end.is_none_or(|end| end > image.virtual_size()) {
        return Ok(false);
    }
    let Some(files) = image.files() else {
        return Ok(false);
    };
    let Some(plan) = image.plan_read(from.offset, len).map_err(Failure::Read)? else {
        return Ok(false);
    };
    for part in &plan.parts {
        let at = at + part.at as u64;
        match part.place {
            Place::Zero => zero(at, part.len as u64).map_err(Failure::Write)?,
            Place::File { file, offset } => {
                let Some(file) = files.get(file) else {
                    return Ok(false);
                };
                let Ok(range) = FileRange::new(*file, offset, part.len) else {
                    return Ok(false);
                };
                target.write_from(at, &range).map_err(Failure::Write)?;
                if range.is_unread.load(Ordering::Relaxed) {
                    // Reading it again returns the error.
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

/// A range of a file as the source of a write.
struct FileRange {
    file: File,
    offset: u64,
    len: usize,
    /// Part of it could not be read.
    is_unread: AtomicBool,
}

/// Bytes that are read and written at a time where copy_file_range does not work.
const READ_LEN: usize = 1 << 20;

impl FileRange {
    fn new(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        Ok(Self {
            file: file.try_clone_to_owned()?.into(),
            offset,
            len,
            is_unread: AtomicBool::new(false),
        })
    }

    /// Reads as much as possible and notes whether something was missing: then the caller reads through the image.
    fn read(&self, at: usize, bytes: &mut [u8]) {
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let offset = self.offset + (at + done) as u64;
            match self.file.read_at(rest, offset) {
                Ok(count @ 1..) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    self.is_unread.store(true, Ordering::Relaxed);
                    break;
                }
            }
        }
        bytes.get_mut(done..).unwrap_or_default().fill(0);
    }
}

impl Source for FileRange {
    fn len(&self) -> usize {
        self.len
    }

    fn write_to(
        &self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<usize> {
        let (mut from, mut to) = (self.offset + at as u64, offset);
        let copied = copy_file_range(self.file.as_fd(), Some(&mut from), file, Some(&mut to), len);
        if let Ok(copied @ 1..) = copied {
            return Ok(copied);
        }
        // Not possible between these files, or past the end of the source; other errors appear again.
        let mut bytes = vec![0; len.min(READ_LEN)];
        self.read(at, &mut bytes);
        rustix::io::pwrite(file, &bytes, offset).map_err(io::Error::from)
    }

    fn get(&self, at: usize, bytes: &mut [u8]) {
        self.read(at, bytes);
    }
}
