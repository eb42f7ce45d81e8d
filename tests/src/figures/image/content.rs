//! What is on the disks: the same for the same seed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::hash::pseudo_random;

/// Data lies in pieces of this length, and of this alignment.
const PIECE: u64 = 1 << 20;

/// A disk: pieces of data at places that look random, and nothing between them. Of three pieces one does not compress
/// and two read like text.
pub(super) struct Content {
    pub(super) size: u64,
    pub(super) pieces: usize,
    pub(super) seed: u64,
}

/// Numbers that look random (xorshift64*).
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound.max(1)
    }

    /// Fisher and Yates.
    pub(super) fn shuffle(&mut self, places: &mut [u64]) {
        for last in (1..places.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            places.swap(last, other);
        }
    }
}

impl Content {
    fn places(&self) -> Vec<u64> {
        let mut places: Vec<u64> = (0..self.size / PIECE).collect();
        Numbers::new(self.seed).shuffle(&mut places);
        places.truncate(self.pieces);
        places
    }

    fn piece(&self, place: u64, words: &[Vec<u8>]) -> Vec<u8> {
        let seed = self.seed << 32 | place;
        match place % 3 {
            0 => pseudo_random(PIECE as usize, seed),
            _ => text(words, seed),
        }
    }
}

/// Writes the disk as a raw file with holes.
pub(super) fn write(path: &Path, content: &Content) -> Result<()> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    file.set_len(content.size).context("size")?;
    let words = words();
    for place in content.places() {
        file.write_all_at(&content.piece(place, &words), place * PIECE)
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Writes other data into one piece of `each`.
pub(super) fn change(path: &Path, content: &Content, each: usize) -> Result<()> {
    let file = File::options()
        .write(true)
        .open(path)
        .with_context(|| path.display().to_string())?;
    let (words, other) = (
        words(),
        Content {
            seed: content.seed + 100,
            ..*content
        },
    );
    for place in content.places().into_iter().step_by(each) {
        file.write_all_at(&other.piece(place, &words), place * PIECE)
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// 4,000 words of 2 to 9 letters, each followed by a space.
fn words() -> Vec<Vec<u8>> {
    let mut numbers = Numbers::new(3);
    (0..4000)
        .map(|_| {
            let letters = 2 + numbers.below(8);
            let mut word: Vec<u8> = (0..letters)
                .map(|_| b'a' + numbers.below(26) as u8)
                .collect();
            word.push(b' ');
            word
        })
        .collect()
}

fn text(words: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    let mut text = Vec::with_capacity(PIECE as usize + 16);
    while text.len() < PIECE as usize {
        let word = words.get(numbers.below(words.len() as u64) as usize);
        text.extend_from_slice(word.map_or(&b" "[..], Vec::as_slice));
    }
    text.truncate(PIECE as usize);
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_disk_is_the_same_each_time_and_has_the_data_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let content = Content {
            size: 64 * PIECE,
            pieces: 9,
            seed: 7,
        };
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        write(&a, &content).unwrap();
        write(&b, &content).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        assert_eq!(a.metadata().unwrap().blocks() * 512, 9 * PIECE);
        change(&b, &content, 3).unwrap();
        let (a, b) = (std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        let pieces = a.chunks(PIECE as usize).zip(b.chunks(PIECE as usize));
        assert_eq!(pieces.filter(|(a, b)| a != b).count(), 3);
    }
}
