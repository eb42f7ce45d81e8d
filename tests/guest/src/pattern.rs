//! Contents that can be computed again: the guest writes them, the host knows what to expect, and the other way round.
//!
//! This file is part of the guest and of the tests that run it.

/// The 8 bytes at `index` of the endless pattern of `seed` (the finalizer of `SplitMix64`).
pub(super) fn word(seed: u64, index: u64) -> [u8; 8] {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ z >> 31).to_le_bytes()
}

/// Fills `bytes` with the pattern of `seed` from byte `offset` on, which is a multiple of 8.
pub(super) fn fill(seed: u64, offset: u64, bytes: &mut [u8]) {
    for (index, part) in (offset / 8..).zip(bytes.chunks_mut(8)) {
        let word = word(seed, index);
        part.copy_from_slice(&word[..part.len()]);
    }
}
