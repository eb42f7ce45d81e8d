//! An input: a few operations, then the image they are done to.

use qcow::{Image, Preallocation};

/// Bytes of one operation.
const STEP: usize = 8;
/// The longest single read or write, so that a step stays cheap.
const LONGEST: u64 = 64 << 10;

/// One operation on an image.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    kind: u8,
    fill: u8,
    place: u32,
    len: u16,
}

/// Splits an input: its first byte is the number of steps, the image is what follows them.
pub fn split(input: &[u8]) -> (Vec<Step>, &[u8]) {
    let Some((&count, rest)) = input.split_first() else {
        return (Vec::new(), input);
    };
    let length = (usize::from(count % 32) * STEP).min(rest.len() / STEP * STEP);
    let (steps, image) = rest.split_at(length);
    (steps.chunks_exact(STEP).map(Step::new).collect(), image)
}

/// Joins steps and image as [`split`] takes them apart.
pub fn join(steps: &[[u8; STEP]], image: &[u8]) -> Vec<u8> {
    let count = u8::try_from(steps.len()).unwrap_or(u8::MAX);
    let mut input = vec![count];
    input.extend(steps.iter().flatten());
    input.extend(image);
    input
}

impl Step {
    fn new(bytes: &[u8]) -> Self {
        Self {
            kind: bytes[0],
            fill: bytes[1],
            place: u32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]),
            len: u16::from_le_bytes([bytes[6], bytes[7]]),
        }
    }

    /// Where in the disk, and how much: dense at the front for small places, spread over all of it for large ones.
    fn range(self, size: u64) -> (u64, u64) {
        let place = u64::from(self.place);
        let offset = if self.place < 1 << 24 {
            place
        } else {
            place.wrapping_mul(size / 0xffff_ffff + 1)
        };
        let offset = offset.checked_rem(size).unwrap_or(0);
        (offset, u64::from(self.len).min(size - offset).min(LONGEST))
    }

    /// Reads. An error is as good as data; a panic is not.
    pub fn read(self, image: &Image) {
        let (offset, len) = self.range(image.virtual_size());
        let mut buffer = vec![0; len as usize];
        let _ = image.read_at(offset, &mut buffer);
        let _ = image.map(offset, len.max(1));
    }

    /// Changes the image in one of the ways there are.
    ///
    /// # Errors
    /// The library's.
    pub fn change(self, image: &Image) -> qcow::Result<()> {
        let (offset, len) = self.range(image.virtual_size());
        match self.kind % 10 {
            0..=3 => image.write_at(offset, &vec![self.fill; len as usize]),
            4 => image.write_zeroes(offset, len, self.fill & 1 != 0),
            5 => image.discard(offset, len),
            6 => image.flush(),
            7 => image.snapshot_create("s"),
            8 => image.snapshot_delete("s"),
            _ => {
                let grown = image.virtual_size().saturating_add(len * 512);
                image.resize(grown / 512 * 512, Preallocation::Off)
            }
        }
    }
}
