//! The configuration space of a virtio block device. (virtio 1.2, 5.2.4 "Device configuration layout")

/// The unit of all positions and lengths.
pub(crate) const SECTOR: u64 = 512;

/// The most bytes of one discard or write-zeroes segment, so that one request does not keep the others waiting for
/// long.
pub(crate) const MAX_DISCARD: u64 = 1 << 30;
pub(crate) const MAX_WRITE_ZEROES: u64 = 128 << 20;
/// The most segments of one discard or write-zeroes request.
pub(crate) const MAX_DISCARD_SEGMENTS: u32 = 16;
pub(crate) const MAX_WRITE_ZEROES_SEGMENTS: u32 = 1;

/// The most data buffers of one request. With header and status they fit the shortest ring that frontends use by
/// default (128).
const MAX_SEGMENTS: u32 = 126;
/// 4 KiB blocks are what host file systems have; 2^3 sectors.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

/// The variable fields of the configuration space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// Size of the disk in bytes.
    pub(crate) size: u64,
    /// The granularity of discards, in bytes.
    pub(crate) granularity: u64,
    /// How many request queues there are.
    pub(crate) queues: u16,
}

impl Config {
    /// The configuration space, from the capacity to the limits of write-zeroes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).unwrap_or(u32::MAX);
        let block = 1u16 << PHYSICAL_BLOCK_EXPONENT;
        let mut bytes = Vec::with_capacity(60);
        bytes.extend((self.size / SECTOR).to_le_bytes()); // capacity
        bytes.extend(0u32.to_le_bytes()); // size_max: not limited
        bytes.extend(MAX_SEGMENTS.to_le_bytes()); // seg_max
        bytes.extend([0; 4]); // geometry: none
        bytes.extend((SECTOR as u32).to_le_bytes()); // blk_size
        bytes.extend([PHYSICAL_BLOCK_EXPONENT, 0]); // topology: exponent, alignment offset
        bytes.extend(block.to_le_bytes()); // topology: min_io_size
        bytes.extend(sectors(self.granularity).to_le_bytes()); // topology: opt_io_size
        bytes.extend([1, 0]); // writeback, unused
        bytes.extend(self.queues.to_le_bytes()); // num_queues
        bytes.extend(sectors(MAX_DISCARD).to_le_bytes()); // max_discard_sectors
        bytes.extend(MAX_DISCARD_SEGMENTS.to_le_bytes()); // max_discard_seg
        bytes.extend(sectors(self.granularity).to_le_bytes()); // discard_sector_alignment
        bytes.extend(sectors(MAX_WRITE_ZEROES).to_le_bytes()); // max_write_zeroes_sectors
        bytes.extend(MAX_WRITE_ZEROES_SEGMENTS.to_le_bytes()); // max_write_zeroes_seg
        bytes.extend([1, 0, 0, 0]); // write_zeroes_may_unmap, unused
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let config = Config {
            size: 3 << 30,
            granularity: 65536,
            queues: 4,
        };
        let bytes = config.bytes();
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes.len(), 60);
        assert_eq!(
            u64::from_le_bytes(bytes[..8].try_into().unwrap()),
            (3 << 30) / 512
        );
        assert_eq!(u32_at(12), MAX_SEGMENTS);
        assert_eq!(u32_at(20), 512);
        assert_eq!((bytes[24], u16_at(26), u32_at(28)), (3, 8, 128));
        assert_eq!(u16_at(34), 4);
        assert_eq!((u32_at(36), u32_at(40), u32_at(44)), (1 << 21, 16, 128));
        assert_eq!((u32_at(48), u32_at(52), bytes[56]), (1 << 18, 1, 1));
    }
}
