//! The snapshot table.

use crate::big_endian::{be32, be64};
use crate::error::{Error, Result};
use crate::geometry::{Geometry, MAX_L1_BYTES};
use crate::report::SnapshotInfo;

/// Most snapshots of an image.
pub(crate) const MAX_SNAPSHOTS: u32 = 65536;
/// Largest snapshot table in bytes.
pub(crate) const MAX_TABLE_BYTES: u64 = 64 << 20;
const MAX_EXTRA: u32 = 1024;
const FIXED: usize = 40;

/// One entry of the snapshot table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) l1_offset: u64,
    pub(crate) l1_size: u32,
    pub(crate) info: SnapshotInfo,
    /// Extra data beyond what this library knows; kept.
    pub(crate) unknown_extra: Vec<u8>,
}

impl Snapshot {
    /// Parses one entry from the beginning of `bytes`; returns it and its length.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(Self, usize)> {
        let cut = || Error::corrupt("the snapshot table is cut off");
        let fixed = bytes.get(..FIXED).ok_or_else(cut)?;
        let be16 = |at: usize| {
            usize::from(
                fixed
                    .get(at..)
                    .and_then(|rest| rest.first_chunk::<2>())
                    .map_or(0, |c| u16::from_be_bytes(*c)),
            )
        };
        let (id_len, name_len, extra_len) = (be16(12), be16(14), be32(fixed, 36));
        if extra_len > MAX_EXTRA {
            return Err(Error::corrupt(format!(
                "too much extra metadata in the snapshot table: {extra_len} bytes"
            )));
        }
        let extra_end = FIXED + extra_len as usize;
        let extra = bytes.get(FIXED..extra_end).ok_or_else(cut)?;
        let id = bytes.get(extra_end..extra_end + id_len).ok_or_else(cut)?;
        let name = bytes
            .get(extra_end + id_len..extra_end + id_len + name_len)
            .ok_or_else(cut)?;
        let long_state = (extra.len() >= 8).then(|| be64(extra, 0));
        let info = SnapshotInfo {
            id: String::from_utf8_lossy(id).into_owned(),
            name: String::from_utf8_lossy(name).into_owned(),
            vm_state_size: long_state.unwrap_or_else(|| u64::from(be32(fixed, 32))),
            date_sec: be32(fixed, 16),
            date_nsec: be32(fixed, 20),
            vm_clock_nsec: be64(fixed, 24),
            icount: (extra.len() >= 24)
                .then(|| be64(extra, 16))
                .filter(|icount| *icount != u64::MAX),
            disk_size: (extra.len() >= 16).then(|| be64(extra, 8)),
        };
        let unknown_extra = extra.get(24..).unwrap_or_default().to_vec();
        let snapshot = Self {
            l1_offset: be64(fixed, 0),
            l1_size: be32(fixed, 8),
            info,
            unknown_extra,
        };
        let len = (extra_end + id_len + name_len).next_multiple_of(8);
        Ok((snapshot, len))
    }

    /// Checks the place and size of its L1 table.
    pub(crate) fn check(&self, geometry: &Geometry) -> Result<()> {
        let bytes = u64::from(self.l1_size) * 8;
        if bytes == 0 {
            return Ok(());
        }
        geometry.check_table("Snapshot L1 table", self.l1_offset, bytes, MAX_L1_BYTES)
    }

    /// Appends the entry as it is in the file, with all extra data of version 3.
    pub(crate) fn encode(&self, out: &mut Vec<u8>, disk_size: u64) {
        let start = out.len();
        out.extend_from_slice(&self.l1_offset.to_be_bytes());
        out.extend_from_slice(&self.l1_size.to_be_bytes());
        out.extend_from_slice(&(self.info.id.len() as u16).to_be_bytes());
        out.extend_from_slice(&(self.info.name.len() as u16).to_be_bytes());
        out.extend_from_slice(&self.info.date_sec.to_be_bytes());
        out.extend_from_slice(&self.info.date_nsec.to_be_bytes());
        out.extend_from_slice(&self.info.vm_clock_nsec.to_be_bytes());
        out.extend_from_slice(
            &u32::try_from(self.info.vm_state_size)
                .unwrap_or(0)
                .to_be_bytes(),
        );
        out.extend_from_slice(&(24 + self.unknown_extra.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.info.vm_state_size.to_be_bytes());
        out.extend_from_slice(&self.info.disk_size.unwrap_or(disk_size).to_be_bytes());
        out.extend_from_slice(&self.info.icount.unwrap_or(u64::MAX).to_be_bytes());
        out.extend_from_slice(&self.unknown_extra);
        out.extend_from_slice(self.info.id.as_bytes());
        out.extend_from_slice(self.info.name.as_bytes());
        let len = out.len() - start;
        out.resize(start + len.next_multiple_of(8), 0);
    }
}
