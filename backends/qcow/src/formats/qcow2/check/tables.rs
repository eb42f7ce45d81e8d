//! Reads tables: in pieces, without the holes of the file, and bounded by what the file really holds.

use crate::error::{Error, Result};
use crate::formats::qcow2::check::Check;

/// Largest piece of a table that is read at a time.
const PIECE: u64 = 64 << 10;
/// How often each byte that the file really has may be read as part of a table. A sound image needs two.
const READS_PER_BYTE: u64 = 16;
/// Counting a cluster takes as long as reading so many bytes.
const PER_CLUSTER: u64 = 64;
/// So much may be read whatever the file holds.
const FREE: u64 = 64 << 20;

/// What is known about holes of the file, and how much more of it may be read as tables.
#[derive(Debug, Default)]
pub(in crate::formats::qcow2) struct Extents {
    data: (u64, u64),
    hole: (u64, u64),
    allowance: u64,
}

impl Extents {
    /// For a file that really has `allocated` bytes.
    pub(in crate::formats::qcow2) fn new(allocated: u64) -> Self {
        Self {
            allowance: allocated
                .saturating_mul(READS_PER_BYTE)
                .saturating_add(FREE),
            ..Self::default()
        }
    }

    /// Something was written.
    pub(in crate::formats::qcow2) fn forget(&mut self) {
        (self.data, self.hole) = ((0, 0), (0, 0));
    }
}

impl Check<'_> {
    /// If a hole is at `offset`: where it ends.
    fn hole_end(&mut self, offset: u64) -> Option<u64> {
        let known = &mut self.extents;
        let holds = |range: (u64, u64)| (range.0..range.1).contains(&offset);
        if holds(known.data) {
            return None;
        }
        if holds(known.hole) {
            return Some(known.hole.1);
        }
        match self.storage.next_data(offset) {
            Ok(Some((start, end))) if start > offset => {
                (known.hole, known.data) = ((offset, start), (start, end));
                Some(start)
            }
            Ok(Some((_, end))) => {
                known.data = (offset, end);
                None
            }
            Ok(None) => {
                known.hole = (offset, u64::MAX);
                Some(u64::MAX)
            }
            // A file system that knows no holes: everything is read.
            Err(_) => None,
        }
    }

    /// Hands out a table of `len` bytes at `offset` in pieces, each with its place in the table. Pieces in holes are
    /// left out.
    pub(in crate::formats::qcow2) fn each_piece(
        &mut self,
        offset: u64,
        len: u64,
        mut each: impl FnMut(&mut Self, u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut bytes = vec![0u8; len.min(PIECE) as usize];
        let mut at = 0;
        while at < len {
            let size = (len - at).min(PIECE);
            if let Some(end) = self.hole_end(offset.saturating_add(at)) {
                let skipped = end.saturating_sub(offset) / PIECE * PIECE;
                if skipped > at || end >= offset.saturating_add(len) {
                    at = skipped.max(at + size);
                    continue;
                }
            }
            let piece = bytes.get_mut(..size as usize).unwrap_or_default();
            self.read(offset + at, piece)?;
            each(self, at, piece)?;
            at += size;
        }
        Ok(())
    }

    /// The words of a table that are not zero, each with its index.
    pub(in crate::formats::qcow2) fn each_word(
        &mut self,
        offset: u64,
        count: u64,
        mut each: impl FnMut(&mut Self, u64, u64) -> Result<()>,
    ) -> Result<()> {
        self.each_piece(offset, count * 8, |check, at, piece| {
            for (index, word) in (at / 8..).zip(piece.chunks_exact(8)) {
                let word = word.try_into().map_or(0, u64::from_be_bytes);
                if word != 0 {
                    each(check, index, word)?;
                }
            }
            Ok(())
        })
    }

    /// Work for tables that takes as long as reading so many bytes.
    fn charge(&mut self, bytes: u64) -> Result<()> {
        let left = self.extents.allowance.checked_sub(bytes);
        let Some(left) = left else {
            self.result.check_errors += 1;
            return Err(Error::corrupt(
                "the tables of the image lead to the same places again and again",
            ));
        };
        self.extents.allowance = left;
        Ok(())
    }

    /// Counts the clusters of a table. Holes cost nothing to read, but their clusters are counted one by one.
    pub(in crate::formats::qcow2) fn count_table(
        &mut self,
        offset: u64,
        entries: u64,
    ) -> Result<()> {
        self.charge(((entries * 8) >> self.geometry.cluster_bits) * PER_CLUSTER)?;
        self.count(offset, entries * 8, 1);
        Ok(())
    }

    /// Reads part of a table.
    pub(in crate::formats::qcow2) fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let len = bytes.len();
        self.charge(len as u64)?;
        self.storage
            .read(offset, &mut &mut bytes[..], 0, len)
            .map_err(|error| {
                self.result.check_errors += 1;
                Error::io(format!("cannot read a table at {offset:#x}"), error)
            })
    }
}
