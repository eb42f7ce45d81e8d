//! Header extensions: the list between the header and the backing file name.

use crate::error::{Error, Result};

/// Types of header extensions.
pub(crate) mod kind {
    pub(crate) const END: u32 = 0;
    pub(crate) const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub(crate) const FEATURE_NAMES: u32 = 0x6803_f857;
    pub(crate) const BITMAPS: u32 = 0x2385_2875;
    pub(crate) const DATA_FILE: u32 = 0x4441_5441;
    pub(crate) const CRYPTO: u32 = 0x0537_be77;
    /// "BHJL", of this library: see [`crate::formats::qcow2::journal::file`].
    pub(crate) const JOURNAL: u32 = 0x4248_4a4c;
}

/// One header extension, known or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extension {
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
}

impl Extension {
    /// Parses the list in `bytes`, which ends where the backing file name begins.
    pub(crate) fn parse_list(bytes: &[u8]) -> Result<Vec<Self>> {
        let mut list = Vec::new();
        let mut rest = bytes;
        // A list may end without an end marker, where the room for it ends.
        while let Some((head, tail)) = rest.split_first_chunk::<8>() {
            let [a, b, c, d, e, f, g, h] = *head;
            let (kind, len) = (
                u32::from_be_bytes([a, b, c, d]),
                u32::from_be_bytes([e, f, g, h]) as usize,
            );
            // The end marker has a length, too, which must fit.
            let data = tail
                .get(..len)
                .ok_or_else(|| Error::corrupt("Header extension too large"))?;
            if kind == kind::END {
                break;
            }
            list.push(Self {
                kind,
                data: data.to_vec(),
            });
            rest = tail.get(len.next_multiple_of(8)..).unwrap_or_default();
        }
        Ok(list)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.kind.to_be_bytes());
        out.extend_from_slice(&(self.data.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.data);
        out.resize(
            out.len() - self.data.len() + self.data.len().next_multiple_of(8),
            0,
        );
    }
}
