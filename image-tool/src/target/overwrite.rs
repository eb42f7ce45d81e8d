//! Copying a complete staged file over a file that, at the end, could not be replaced by it.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, copy_file_range, seek};
use rustix::io::Errno;

/// The most bytes of one copy_file_range.
const PART: u64 = 64 << 20;

/// Copies the content of `new` into `old`, which is empty, leaves out holes, and syncs.
pub(super) fn overwrite(old: &File, new: &File) -> io::Result<()> {
    let end = new.metadata()?.len();
    old.set_len(end)?;
    let mut at = 0;
    while let Some((start, stop)) = next_data(new, at, end)? {
        copy(old, new, start, stop)?;
        at = stop;
    }
    old.sync_all()
}

/// The next range that may hold data.
fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= end {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // The file system does not support SEEK_DATA.
        Err(_) => return Ok(Some((at, end))),
    };
    let stop = seek(file, SeekFrom::Hole(start)).unwrap_or(end);
    Ok((start < end).then_some((start, stop.min(end))))
}

fn copy(old: &File, new: &File, start: u64, stop: u64) -> io::Result<()> {
    let mut at = start;
    while at < stop {
        let len = usize::try_from((stop - at).min(PART)).unwrap_or(usize::MAX);
        let (mut from, mut to) = (at, at);
        match copy_file_range(new, Some(&mut from), old, Some(&mut to), len) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(done) => at += done as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                at += read_and_write(old, new, at, len)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Copies where copy_file_range does not work between the two file systems.
fn read_and_write(old: &File, new: &File, at: u64, len: usize) -> io::Result<u64> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; len.min(1 << 20)];
    new.read_exact_at(&mut buffer, at)?;
    old.write_all_at(&buffer, at)?;
    Ok(buffer.len() as u64)
}
