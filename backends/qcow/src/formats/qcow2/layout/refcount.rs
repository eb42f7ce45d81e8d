//! Tables and refcount blocks as they are in the file.

use crate::formats::qcow2::layout::geometry::Geometry;

/// Words as they are in the file.
pub(crate) fn to_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// Refcount blocks in which the first `ones` counts are 1 and the others 0.
pub(crate) fn refcount_ones(geometry: &Geometry, ones: u64, blocks: u64) -> Vec<u8> {
    let mut bytes = vec![0u8; (blocks * geometry.cluster_size()) as usize];
    let bits = u64::from(geometry.refcount_bits());
    for index in 0..ones {
        // The lowest bit of the count: the last byte of a large one, the low end of its share of a small one.
        let (byte, bit) = if bits >= 8 {
            ((index + 1) * bits / 8 - 1, 0)
        } else {
            (index * bits / 8, index * bits % 8)
        };
        if let Some(byte) = bytes.get_mut(byte as usize) {
            *byte |= 1 << bit;
        }
    }
    bytes
}
