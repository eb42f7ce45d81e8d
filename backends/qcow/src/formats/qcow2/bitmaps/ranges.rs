//! Bits, and the ranges of the disk they stand for.

/// The ranges of a disk that a bitmap says are dirty, each a start and a length in bytes: in order, apart, and within
/// the disk. The bits are in memory, a range is only made when it is asked for.
#[derive(Debug, Clone)]
pub struct DirtyRanges {
    bits: Vec<u8>,
    granularity: u64,
    size: u64,
    /// Bits before this one have been returned.
    next: u64,
}

impl DirtyRanges {
    /// Those of a disk of `size` bytes, each bit for `granularity` of them.
    pub(super) fn new(bits: Vec<u8>, granularity: u64, size: u64) -> Self {
        Self {
            bits,
            granularity,
            size,
            next: 0,
        }
    }

    /// The first bit from `start` on that is `value`, 64 at a time.
    fn bit_from(&self, start: u64, value: bool) -> Option<u64> {
        let words = self.bits.chunks(8).enumerate();
        let mut passed = u64::MAX << (start % 64);
        for (index, chunk) in words.skip((start / 64) as usize) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let word = u64::from_le_bytes(word);
            let found = passed & if value { word } else { !word };
            if found != 0 {
                return Some(index as u64 * 64 + u64::from(found.trailing_zeros()));
            }
            passed = u64::MAX;
        }
        None
    }
}

impl Iterator for DirtyRanges {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let start = self.bit_from(self.next, true)?;
        // Bits behind the end of the disk stand for nothing.
        let bytes = start
            .checked_mul(self.granularity)
            .filter(|bytes| *bytes < self.size)?;
        let end = self.bit_from(start, false).unwrap_or(u64::MAX);
        self.next = end;
        let end = end.saturating_mul(self.granularity).min(self.size);
        Some((bytes, end - bytes))
    }
}

/// Sets the bits for a range of the disk, as many as there are.
pub(super) fn set(bits: &mut [u8], granularity_bits: u8, start: u64, len: u64) {
    if len == 0 {
        return;
    }
    let first = start >> granularity_bits;
    let last = (start + len - 1) >> granularity_bits;
    let (first_byte, last_byte) = ((first / 8) as usize, (last / 8) as usize);
    let (front, back) = (0xff << (first % 8), 0xff >> (7 - last % 8));
    let mut mark = |byte: usize, mask: u8| {
        if let Some(byte) = bits.get_mut(byte) {
            *byte |= mask;
        }
    };
    if first_byte == last_byte {
        return mark(first_byte, front & back);
    }
    mark(first_byte, front);
    mark(last_byte, back);
    let last_byte = last_byte.min(bits.len());
    if let Some(between) = bits.get_mut(first_byte + 1..last_byte) {
        between.fill(0xff);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit.
    fn reported(bits: &[u8], granularity: u64, size: u64) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for bit in
            (0..bits.len() as u64 * 8).filter(|bit| bits[*bit as usize / 8] >> (bit % 8) & 1 == 1)
        {
            let start = bit * granularity;
            let len = granularity.min(size.saturating_sub(start));
            match ranges.last_mut() {
                _ if len == 0 => {}
                Some(last) if last.0 + last.1 == start => last.1 += len,
                _ => ranges.push((start, len)),
            }
        }
        ranges
    }

    #[test]
    fn ranges_are_those_of_the_bits() {
        let patterns: [&[u8]; 7] = [
            &[],
            &[0; 20],
            &[0xff; 20],
            &[0xaa; 9],
            &[
                1, 0, 0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0, 0, 0, 0, 0x10,
            ],
            &[
                0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
            ],
            &[0x7f, 0xfe, 3],
        ];
        for bits in patterns {
            let all = bits.len() as u64 * 8 * 512;
            for size in [all, all.saturating_sub(300), all / 2, 0] {
                let ranges: Vec<_> = DirtyRanges::new(bits.to_vec(), 512, size).collect();
                assert_eq!(ranges, reported(bits, 512, size), "{bits:x?} {size}");
            }
        }
    }

    #[test]
    fn bits_are_set_for_all_of_a_range_and_nothing_else() {
        for start in 0..70 {
            for len in 0..58 {
                let mut bits = [0; 16];
                set(&mut bits, 0, start, len);
                let expected = if len == 0 { vec![] } else { vec![(start, len)] };
                assert_eq!(reported(&bits, 1, 128), expected);
                let ranges: Vec<_> = DirtyRanges::new(bits.to_vec(), 1, 128).collect();
                assert_eq!(ranges, expected);
            }
        }
        let mut few = [0; 2];
        set(&mut few, 9, 512 * 3, 1 << 30);
        assert_eq!(few, [0xf8, 0xff]);
        set(&mut few, 9, 1 << 40, 512);
    }
}
