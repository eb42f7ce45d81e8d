//! An input as an image: either its bytes, or a sound image and a few patches to its metadata.
//!
//! Bytes alone rarely stay an image for long under a fuzzer's hands, and are long. With patches, most of what it changes is
//! something that the library will look at.

use std::borrow::Cow;

use crate::places;
use crate::sound;

/// What a qcow2 image begins with. An input that does not is patches.
const MAGIC: &[u8] = b"QFI\xfb";
/// Bytes of one patch.
const PATCH: usize = 12;
/// The longest image that patches make.
const LONGEST: usize = 1 << 20;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// The image an input stands for.
pub fn image(input: &[u8]) -> Cow<'_, [u8]> {
    if input.starts_with(MAGIC) {
        return Cow::Borrowed(input);
    }
    let sound = sound::images();
    let index = input.first().map_or(0, |index| usize::from(*index)) % sound.len();
    let base = &sound[index];
    let mut bytes = base.bytes.clone();
    for patch in input.get(1..).unwrap_or_default().chunks_exact(PATCH) {
        Patch::new(patch).apply(&mut bytes, &base.places);
    }
    Cow::Owned(bytes)
}

/// Whether the image of an input is one of the sound ones, as it was made.
pub(crate) fn is_untouched(input: &[u8]) -> bool {
    !input.starts_with(MAGIC) && input.len() <= PATCH
}

/// An input that stands for the sound image of this number with patches.
pub fn recipe(index: u8, patches: &[[u8; PATCH]]) -> Vec<u8> {
    std::iter::once(index)
        .chain(patches.iter().flatten().copied())
        .collect()
}

/// Bytes of a recipe with so many patches.
pub(crate) fn recipe_len(patches: usize) -> usize {
    1 + PATCH * patches
}

/// Patches in a recipe.
pub(crate) fn patches_of(recipe: &[u8]) -> usize {
    recipe.len() / PATCH
}

/// One change of metadata.
struct Patch {
    place: u16,
    kind: u8,
    argument: u8,
    value: u64,
}

impl Patch {
    fn new(bytes: &[u8]) -> Self {
        let mut value = [0; 8];
        value.copy_from_slice(&bytes[4..]);
        Self {
            place: u16::from_le_bytes([bytes[0], bytes[1]]),
            kind: bytes[2],
            argument: bytes[3],
            value: u64::from_le_bytes(value),
        }
    }

    fn apply(&self, bytes: &mut Vec<u8>, places: &[usize]) {
        let place = |number: u64| places[(number % places.len() as u64) as usize];
        let at = place(u64::from(self.place));
        let cluster_size = places::cluster_size(bytes);
        let word = |bytes: &[u8], at: usize| places::word(bytes, at, 8);
        match self.kind % 12 {
            0 => put(bytes, at, &self.value.to_be_bytes()),
            1 => put(bytes, at, &(self.value as u32).to_be_bytes()),
            2 => put(bytes, at, &(self.value as u16).to_be_bytes()),
            3 => put(
                bytes,
                at + usize::from(self.argument % 16),
                &[self.value as u8],
            ),
            4 => {
                let flipped = word(bytes, at) ^ 1 << (self.argument % 64);
                put(bytes, at, &flipped.to_be_bytes());
            }
            5 => {
                let step = i64::from(self.argument.cast_signed());
                let moved = word(bytes, at).wrapping_add_signed(step);
                put(bytes, at, &moved.to_be_bytes());
            }
            6 => {
                let step = i64::from(self.argument.cast_signed()) * cluster_size as i64;
                let moved = word(bytes, at).wrapping_add_signed(step);
                put(bytes, at, &moved.to_be_bytes());
            }
            // What leads to somewhere leads to where something else does.
            7 => {
                let copied = word(bytes, place(self.value)).to_be_bytes();
                put(bytes, at, &copied);
            }
            8 => {
                let (other, here) = (place(self.value), word(bytes, at));
                let there = word(bytes, other);
                put(bytes, at, &there.to_be_bytes());
                put(bytes, other, &here.to_be_bytes());
            }
            // An entry that leads to a cluster of the file, with flags.
            9 | 10 => {
                let clusters = bytes.len() as u64 / cluster_size + 2;
                let flags = [COPIED, 0, COPIED | 1, 1, COMPRESSED, COMPRESSED | COPIED];
                let flags = flags[usize::from(self.argument) % flags.len()];
                let entry = (self.value % clusters * cluster_size) | flags;
                put(bytes, at, &entry.to_be_bytes());
            }
            _ => {
                let len = (self.value % (2 * bytes.len() as u64 + 1)) as usize;
                bytes.resize(len.min(LONGEST), self.argument);
            }
        }
    }
}

/// Replaces bytes where there are some.
fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    for (byte, new) in bytes.iter_mut().skip(at).zip(new) {
        *byte = *new;
    }
}
