//! Numbers in the format's byte order, at an offset within a table. What lies beyond the bytes at hand reads as 0.

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<4>())
        .map_or(0, |chunk| u32::from_be_bytes(*chunk))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<8>())
        .map_or(0, |chunk| u64::from_be_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_big_endian_and_nothing_is_read_beyond_the_end() {
        let bytes = [0, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(be32(&bytes, 1), 0x0102_0304);
        assert_eq!(be64(&bytes, 1), 0x0102_0304_0506_0708);
        assert_eq!(
            (be64(&bytes, 2), be32(&bytes, 6), be32(&bytes, 99)),
            (0, 0, 0)
        );
    }
}
