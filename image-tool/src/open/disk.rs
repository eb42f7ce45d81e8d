//! The disk that an image shows, in whole sectors: as for a guest, a raw file that ends within a sector is padded with
//! zeroes.

use qcow::{Extent, Image};

/// The unit of a disk's size.
pub(crate) const SECTOR: u64 = 512;

/// The disk an image shows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Disk<'a>(pub(crate) &'a Image);

impl Disk<'_> {
    pub(crate) fn size(self) -> u64 {
        whole_sectors(self.0.virtual_size())
    }

    /// Fills `buffer` from `offset`; past the image's end with zeroes.
    pub(crate) fn read(self, offset: u64, buffer: &mut [u8]) -> qcow::Result<()> {
        let inside = self.0.virtual_size().saturating_sub(offset);
        let inside = usize::try_from(inside)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let (data, padding) = buffer.split_at_mut(inside);
        padding.fill(0);
        if data.is_empty() {
            return Ok(());
        }
        self.0.read_at(offset, data)
    }

    /// The extent at `offset` in the whole backing chain.
    pub(crate) fn map(self, offset: u64, len: u64) -> qcow::Result<Extent> {
        self.inside(offset, len, Image::map)
    }

    /// The extent at `offset` in the image without its backing file.
    pub(crate) fn map_layer(self, offset: u64, len: u64) -> qcow::Result<Extent> {
        self.inside(offset, len, Image::map_layer)
    }

    fn inside(
        self,
        offset: u64,
        len: u64,
        map: impl Fn(&Image, u64, u64) -> qcow::Result<Extent>,
    ) -> qcow::Result<Extent> {
        let end = self.0.virtual_size();
        if offset < end {
            return map(self.0, offset, len.min(end - offset));
        }
        // The padding's offset in the file, which may begin before the disk does.
        let last = end.checked_sub(1);
        let last = last.map(|last| self.0.map_layer(last, 1)).transpose()?;
        let start = last
            .and_then(|last| last.offset?.checked_sub(last.start))
            .unwrap_or(0);
        Ok(Extent {
            start: offset,
            length: len,
            depth: 0,
            present: true,
            zero: true,
            data: false,
            compressed: false,
            missing: false,
            offset: offset.checked_add(start),
            file: Some(self.0.path().to_owned()),
        })
    }
}

/// Rounds a size up to whole sectors. Sizes have at most 63 bits.
pub(crate) fn whole_sectors(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(SECTOR).unwrap_or(bytes)
}
