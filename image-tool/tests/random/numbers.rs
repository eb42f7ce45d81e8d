//! Small, repeatable random numbers (splitmix64).

/// Where they come from.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn one_in(&mut self, limit: u64) -> bool {
        self.below(limit) == 0
    }

    pub(crate) fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A size as one writes it: in bytes, or with a suffix where that is exact.
    pub(crate) fn size(&mut self, bytes: u64) -> String {
        match self.below(3) {
            0 if bytes > 0 && bytes.is_multiple_of(1 << 20) => format!("{}M", bytes >> 20),
            0 | 1 if bytes > 0 && bytes.is_multiple_of(1 << 10) => format!("{}k", bytes >> 10),
            _ => bytes.to_string(),
        }
    }
}
