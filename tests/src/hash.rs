//! Content that can be distinguished: SHA-256 in hexadecimal, and bytes that do not repeat.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The hash of some bytes.
pub fn of(data: &[u8]) -> String {
    hexadecimal(Sha256::digest(data).as_slice())
}

/// The hash of a file.
pub fn of_file(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file
            .read(&mut buffer)
            .with_context(|| path.display().to_string())?
        {
            0 => return Ok(hexadecimal(hash.finalize().as_slice())),
            length => hash.update(buffer.get(..length).unwrap_or_default()),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `length` bytes that neither repeat nor compress, the same for the same seed (xorshift64*).
pub fn pseudo_random(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_as_sha256sum_prints_it() {
        assert_eq!(
            of(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn seeds_give_different_bytes() {
        assert_eq!(pseudo_random(13, 1), pseudo_random(13, 1));
        assert_ne!(pseudo_random(13, 1), pseudo_random(13, 2));
    }
}
