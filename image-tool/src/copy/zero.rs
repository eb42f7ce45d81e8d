//! Finding zeroes in a buffer.

/// The unit in which zeroes are found.
pub(crate) const SECTOR: usize = 512;

/// Whether every byte is zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // The first byte of data is seldom zero.
    if bytes.first().is_some_and(|&first| first != 0) {
        return false;
    }
    let mut blocks = bytes.chunks_exact(256);
    // A fold without early exit inside the block is what the compiler turns into vector instructions.
    blocks
        .by_ref()
        .all(|block| block.iter().fold(0, |sum, &byte| sum | byte) == 0)
        && blocks.remainder().iter().all(|&byte| byte == 0)
}

/// Which zeroes in data become holes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sparse {
    /// The fewest zero sectors in a row that become a hole.
    pub(crate) min: usize,
    /// Ends of data are rounded to multiples of this many sectors.
    pub(crate) alignment: usize,
}

/// The first run of `bytes`, which begin at `sector`: whether it is data, and its length in bytes.
pub(crate) fn first_run(bytes: &[u8], sector: u64, sparse: Sparse) -> (bool, usize) {
    let total = bytes.len().div_ceil(SECTOR);
    let min = sparse.min.min(total);
    let (data, mut used) = uniform_run(bytes, sector, sparse.alignment);
    if data {
        let mut checked = used;
        while checked < total {
            let rest = bytes.get(checked * SECTOR..).unwrap_or_default();
            let (data, count) = uniform_run(rest, sector + checked as u64, sparse.alignment);
            checked += count;
            if data {
                used = checked;
            } else if count >= min {
                break;
            }
        }
    }
    (data, (used * SECTOR).min(bytes.len()))
}

/// Whether the first sectors are data, and how many are alike, rounded to the alignment.
fn uniform_run(bytes: &[u8], sector: u64, alignment: usize) -> (bool, usize) {
    let total = bytes.len().div_ceil(SECTOR);
    let mut sectors = bytes.chunks(SECTOR).map(is_zero);
    let Some(mut zero) = sectors.next() else {
        return (false, 0);
    };
    let Some(same) = sectors.position(|next| next != zero) else {
        return (!zero, total);
    };
    let mut count = same + 1;
    let alignment = alignment.max(1);
    let tail = ((sector + count as u64) % alignment as u64) as usize;
    if tail != 0 {
        if zero && count <= tail {
            // The data that follows rewrites this unit anyway.
            zero = false;
        }
        if zero {
            count -= tail;
        } else {
            count = (count + alignment - tail).min(total);
        }
    }
    (!zero, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPARSE: Sparse = Sparse {
        min: 8,
        alignment: 8,
    };

    fn sectors(pattern: &str) -> Vec<u8> {
        pattern
            .bytes()
            .flat_map(|b| [if b == b'.' { 0u8 } else { 1 }; SECTOR])
            .collect()
    }

    #[test]
    fn one_byte_anywhere_is_data() {
        for len in [1, 255, 256, 257, 4096] {
            assert!(is_zero(&vec![0; len]));
            for at in [0, len / 2, len - 1] {
                let mut bytes = vec![0; len];
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {len}");
            }
        }
    }

    #[test]
    fn short_zeroes_within_data_are_data() {
        let bytes = sectors("x.......x.......................");
        assert_eq!(first_run(&bytes, 0, SPARSE), (true, 16 * SECTOR));
    }

    #[test]
    fn long_zeroes_end_the_data_at_the_alignment() {
        let bytes = sectors("xx..............................");
        assert_eq!(first_run(&bytes, 0, SPARSE), (true, 8 * SECTOR));
        assert_eq!(first_run(&bytes, 4, SPARSE), (true, 4 * SECTOR));
        let bytes = sectors("..........x.....");
        assert_eq!(first_run(&bytes, 0, SPARSE), (false, 8 * SECTOR));
    }

    #[test]
    fn a_buffer_that_is_all_alike_is_one_run() {
        assert_eq!(first_run(&sectors("...."), 3, SPARSE), (false, 4 * SECTOR));
        assert_eq!(first_run(&[1; 100], 0, SPARSE), (true, 100));
    }
}
