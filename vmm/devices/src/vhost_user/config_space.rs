//! A copy of the device's configuration space, so that the driver can read it while there is no backend.

/// Drivers write a few fields. No more than this many are remembered for the next backend.
const MAX_WRITES: usize = 16;

pub(super) struct ConfigCopy {
    bytes: Vec<u8>,
    /// The driver's writes (offset and bytes), which the next backend gets, too.
    written: Vec<(u32, Vec<u8>)>,
}

impl ConfigCopy {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            written: Vec::new(),
        }
    }

    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.bytes.get(start..).unwrap_or_default();
        for (to, byte) in data.iter_mut().zip(bytes) {
            *to = *byte;
        }
    }

    /// Returns `offset` if the configuration space has room for all of `data` there.
    pub(super) fn checked_offset(&self, offset: u64, data: &[u8]) -> Option<u32> {
        let end = offset.checked_add(data.len() as u64)?;
        let fits = !data.is_empty() && end <= self.bytes.len() as u64;
        u32::try_from(offset).ok().filter(|_| fits)
    }

    /// Applies a write that the backend does not get.
    pub(super) fn put(&mut self, offset: u32, data: &[u8]) {
        let fields = self.bytes.iter_mut().skip(offset as usize);
        for (to, byte) in fields.zip(data) {
            *to = *byte;
        }
    }

    /// Applies a write that the backend gets, and each one after it.
    pub(super) fn put_for_backend(&mut self, offset: u32, data: &[u8]) {
        self.put(offset, data);
        let same = |(at, bytes): &(u32, Vec<u8>)| *at == offset && bytes.len() == data.len();
        self.written.retain(|write| !same(write));
        if self.written.len() < MAX_WRITES {
            self.written.push((offset, data.to_vec()));
        }
    }

    /// The driver's writes since the last reset.
    pub(super) fn written(&self) -> Vec<(u32, Vec<u8>)> {
        self.written.clone()
    }

    pub(super) fn forget_written(&mut self) {
        self.written.clear();
    }

    /// Replaces the content, and applies the driver's writes to the new one. Returns whether anything has changed.
    pub(super) fn replace(&mut self, bytes: Vec<u8>) -> bool {
        let mut new = Self::new(bytes);
        for (offset, data) in std::mem::take(&mut self.written) {
            new.put_for_backend(offset, &data);
        }
        let changed = new.bytes != self.bytes;
        *self = new;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_exist_reads_as_zeros_and_is_not_written() {
        let copy = ConfigCopy::new(vec![1, 2, 3]);
        let mut data = [9; 4];
        copy.read(1, &mut data);
        assert_eq!(data, [2, 3, 0, 0]);
        copy.read(u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
        assert_eq!(copy.checked_offset(1, &[0; 2]), Some(1));
        for (offset, len) in [(2, 2), (3, 1), (0, 0), (u64::MAX, 1)] {
            assert_eq!(copy.checked_offset(offset, &vec![0; len]), None);
        }
    }

    #[test]
    fn what_the_driver_wrote_survives_a_new_backend() {
        let mut copy = ConfigCopy::new(vec![0; 4]);
        copy.put_for_backend(2, &[7]);
        copy.put_for_backend(2, &[8]);
        assert!(
            !copy.replace(vec![0, 0, 0, 0]),
            "only the driver's own byte differs"
        );
        assert!(copy.replace(vec![1, 0, 0, 0]));
        let mut data = [0; 4];
        copy.read(0, &mut data);
        assert_eq!(data, [1, 0, 8, 0]);
        assert_eq!(copy.written(), [(2, vec![8])]);
    }

    #[test]
    fn a_driver_that_writes_everywhere_does_not_fill_memory() {
        let mut copy = ConfigCopy::new(vec![0; 4096]);
        for offset in 0..4000 {
            copy.put_for_backend(offset, &[1]);
        }
        assert_eq!(copy.written().len(), MAX_WRITES);
    }
}
