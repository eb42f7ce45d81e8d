//! The source of a copy: one disk, or several that are concatenated.

use std::path::Path;
use std::sync::Arc;

use qcow::Image;

use crate::open::disk::{Disk, SECTOR};

/// Concatenated disks, each rounded up to whole sectors.
#[derive(Debug)]
pub(crate) struct Input {
    disks: Vec<Part>,
    len: u64,
}

#[derive(Debug)]
struct Part {
    image: Arc<Image>,
    start: u64,
    /// In whole sectors.
    len: u64,
}

/// A position in one of the disks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Position<'a> {
    pub(crate) disk: Disk<'a>,
    /// Offset in this disk.
    pub(crate) offset: u64,
    /// Bytes from there to the end of the disk, in whole sectors.
    pub(crate) left: u64,
}

impl Position<'_> {
    /// Bytes that are lost from here when an L2 entry is damaged: the rest of the smallest cluster in the chain.
    pub(crate) fn damaged(&self) -> u64 {
        let chain = std::iter::successors(Some(self.disk.0), |image| {
            image.backing().map(|backing| &**backing)
        });
        let unit = chain.filter_map(Image::cluster_size).min();
        let unit = unit.unwrap_or(SECTOR);
        (unit - self.offset % unit).min(self.left)
    }
}

impl Input {
    pub(crate) fn new(images: impl IntoIterator<Item = Arc<Image>>) -> Self {
        let mut len = 0u64;
        let mut disks = Vec::new();
        for image in images {
            let disk_len = Disk(&image).size();
            disks.push(Part {
                image,
                start: len,
                len: disk_len,
            });
            len = len.saturating_add(disk_len);
        }
        Self { disks, len }
    }

    /// The length of all disks.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The path of the image at `offset`.
    pub(crate) fn path_at(&self, offset: u64) -> &Path {
        self.at(offset)
            .map_or(Path::new(""), |position| position.disk.0.path())
    }

    /// The disk at `offset`.
    pub(crate) fn at(&self, offset: u64) -> Option<Position<'_>> {
        let disk = self
            .disks
            .iter()
            .find(|disk| (disk.start..disk.start + disk.len).contains(&offset))?;
        let inner = offset - disk.start;
        Some(Position {
            disk: Disk(&disk.image),
            offset: inner,
            left: disk.len - inner,
        })
    }

    /// Fills `buffer` from `offset`. The error has the offset of the failed read.
    pub(crate) fn read(
        &self,
        mut offset: u64,
        mut buffer: &mut [u8],
    ) -> Result<(), (u64, qcow::Error)> {
        while !buffer.is_empty() {
            let Some(position) = self.at(offset) else {
                buffer.fill(0);
                return Ok(());
            };
            let part = usize::try_from(position.left)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let (now, later) = buffer.split_at_mut(part);
            position
                .disk
                .read(position.offset, now)
                .map_err(|error| (offset, error))?;
            offset += part as u64;
            buffer = later;
        }
        Ok(())
    }
}
