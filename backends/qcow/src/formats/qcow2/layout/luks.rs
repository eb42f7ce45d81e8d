//! The header of LUKS, as far as an image can be described without a key.

use crate::error::{Error, Result};
use crate::formats::qcow2::layout::big_endian::be32;
use crate::report::{LuksInfo, LuksSlot};
use crate::storage::Storage;

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const LENGTH: usize = 592;
const SLOTS: usize = 8;
/// A key slot that is in use.
const ENABLED: u32 = 0x00ac_71f3;
/// Its offsets are in these.
const SECTOR: u64 = 512;

/// Reads the header at `offset` of the file.
pub(crate) fn read(storage: &dyn Storage, offset: u64) -> Result<LuksInfo> {
    let mut bytes = [0u8; LENGTH];
    storage
        .read(offset, &mut &mut bytes[..], 0, LENGTH)
        .map_err(|error| Error::io("cannot read the encryption header", error))?;
    if !bytes.starts_with(&MAGIC) {
        return Err(Error::corrupt("Volume is not in LUKS format"));
    }
    let sectors = |at: usize| u64::from(be32(&bytes, at)) * SECTOR;
    let (cipher, mode) = (text(&bytes, 8, 32), text(&bytes, 40, 32));
    let (mode, generator) = mode.split_once('-').unwrap_or((&mode, ""));
    let (generator, generator_hash) = match generator.split_once(':') {
        Some((generator, hash)) => (generator, Some(hash.to_owned())),
        None => (generator, None),
    };
    // Half of the key is for the tweaks.
    let halves = if mode == "xts" { 2 } else { 1 };
    let slots = (0..SLOTS).map(|slot| {
        let at = 208 + slot * 48;
        let active = be32(&bytes, at) == ENABLED;
        LuksSlot {
            key_offset: sectors(at + 40),
            active: active.then(|| (be32(&bytes, at + 4), be32(&bytes, at + 44))),
        }
    });
    Ok(LuksInfo {
        cipher: format!("{cipher}-{}", u64::from(be32(&bytes, 108)) * 8 / halves),
        cipher_mode: mode.to_owned(),
        generator: generator.to_owned(),
        generator_hash,
        hash: text(&bytes, 72, 32),
        uuid: text(&bytes, 168, 40),
        payload_offset: sectors(104),
        master_key_iterations: be32(&bytes, 164),
        slots: slots.collect(),
    })
}

/// A field of text, which may end with a NUL.
fn text(bytes: &[u8; LENGTH], at: usize, len: usize) -> String {
    let field = bytes.get(at..at + len).unwrap_or_default();
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(len);
    String::from_utf8_lossy(field.get(..end).unwrap_or_default()).into_owned()
}
