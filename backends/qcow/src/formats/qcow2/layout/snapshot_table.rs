//! The snapshot table.

use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::layout::big_endian::{be32, be64};
use crate::formats::qcow2::layout::geometry::{Geometry, MAX_L1_BYTES};
use crate::formats::qcow2::layout::header::Header;
use crate::report::SnapshotInfo;
use crate::storage::Storage;

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
    /// Bytes of extra data there were.
    pub(crate) extra_len: u32,
    /// Id and name as they are in the file, where they need not be text.
    pub(crate) names: (Vec<u8>, Vec<u8>),
}

/// How strictly a table is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Too much of something is an error.
    Strict,
    /// Too much of something is left out, and reported.
    Mend,
}

/// The table as it is in the file.
#[derive(Debug, Default)]
pub(crate) struct SnapshotTable {
    pub(crate) entries: Vec<Snapshot>,
    /// Its length.
    pub(crate) bytes: u64,
    /// What was left out, in words.
    pub(crate) findings: Vec<String>,
    /// Entries whose extra data was cut.
    pub(crate) cut: u64,
    /// Entries beyond the largest table.
    pub(crate) overhanging: u64,
}

/// Part of the file in memory, so that small entries do not take a read each.
struct Window<'a> {
    storage: &'a dyn Storage,
    start: u64,
    bytes: Vec<u8>,
}

/// At most an entry and a bit, in bytes.
const WINDOW: usize = 160 << 10;

impl Window<'_> {
    fn get(&mut self, offset: u64, len: usize) -> Result<&[u8]> {
        let have = self.start..self.start + self.bytes.len() as u64;
        if !have.contains(&offset) || offset + len as u64 > have.end {
            self.bytes.resize(WINDOW, 0);
            self.start = offset;
            self.storage
                .read(offset, &mut &mut self.bytes[..], 0, WINDOW)
                .map_err(|error| Error::io("cannot read the snapshot table", error))?;
        }
        let at = (offset - self.start) as usize;
        let bytes = self.bytes.get(at..at + len);
        bytes.ok_or_else(|| Error::corrupt("the snapshot table is cut off"))
    }
}

impl SnapshotTable {
    /// Reads the table that the header leads to.
    pub(crate) fn read(storage: &dyn Storage, header: &Header, reading: Reading) -> Result<Self> {
        let mut window = Window {
            storage,
            start: 0,
            bytes: Vec::new(),
        };
        let mut table = Self::default();
        let (mut at, mut length) = (header.snapshots_offset, 0u64);
        for index in 0..header.snapshots {
            let (snapshot, next) = table.read_entry(&mut window, at, index, reading)?;
            length = length.next_multiple_of(8) + snapshot.len();
            if length > MAX_TABLE_BYTES || next - header.snapshots_offset > i32::MAX as u64 {
                let left = header.snapshots - index;
                if reading == Reading::Strict {
                    return Err(Error::corrupt(format!(
                        "Snapshot table is too big\nYou can force-remove all {left} overhanging snapshots with qemu-img check -r all"
                    )));
                }
                table.findings.push(format!(
                    "Discarding {left} overhanging snapshots (snapshot table is too big)"
                ));
                table.overhanging = u64::from(left);
                break;
            }
            table.entries.push(snapshot);
            table.bytes = next - header.snapshots_offset;
            at = next.next_multiple_of(8);
        }
        Ok(table)
    }

    /// Reads the entry at `at`; returns it and where it ends.
    fn read_entry(
        &mut self,
        window: &mut Window<'_>,
        at: u64,
        index: u32,
        reading: Reading,
    ) -> Result<(Snapshot, u64)> {
        let fixed: [u8; FIXED] = window
            .get(at, FIXED)?
            .try_into()
            .map_err(|_| Error::corrupt("the snapshot table is cut off"))?;
        let be16 = |at: usize| u64::from(be32(&fixed, at) >> 16);
        let (id_len, name_len, extra_len) = (be16(12), be16(14), be32(&fixed, 36));
        if extra_len > MAX_EXTRA {
            if reading == Reading::Strict {
                return Err(Error::corrupt(format!(
                    "Too much extra metadata in snapshot table entry {index}\n\
                     You can force-remove this extra metadata with qemu-img check -r all"
                )));
            }
            self.findings.push(format!(
                "Discarding too much extra metadata in snapshot table entry {index} ({extra_len} > {MAX_EXTRA})"
            ));
            self.cut += 1;
        }
        let kept = extra_len.min(MAX_EXTRA) as usize;
        let extra = window.get(at + FIXED as u64, kept)?.to_vec();
        let names = at + FIXED as u64 + u64::from(extra_len);
        let text = window.get(names, (id_len + name_len) as usize)?;
        let (id, name) = text.split_at(text.len().min(id_len as usize));
        let snapshot = Snapshot::parse(&fixed, &extra, id, name);
        Ok((snapshot, names + id_len + name_len))
    }
}

/// A name as QEMU shows it: up to the first NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    let bytes = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

impl Snapshot {
    fn parse(fixed: &[u8], extra: &[u8], id: &[u8], name: &[u8]) -> Self {
        let long_state = (extra.len() >= 8).then(|| be64(extra, 0));
        let info = SnapshotInfo {
            id: text(id),
            name: text(name),
            vm_state_size: long_state.unwrap_or_else(|| u64::from(be32(fixed, 32))),
            date_sec: be32(fixed, 16),
            date_nsec: be32(fixed, 20),
            vm_clock_nsec: be64(fixed, 24),
            icount: (extra.len() >= 24)
                .then(|| be64(extra, 16))
                .filter(|icount| *icount != u64::MAX),
            disk_size: (extra.len() >= 16).then(|| be64(extra, 8)),
        };
        Self {
            l1_offset: be64(fixed, 0),
            l1_size: be32(fixed, 8),
            info,
            unknown_extra: extra.get(24..).unwrap_or_default().to_vec(),
            extra_len: extra.len() as u32,
            names: (id.to_vec(), name.to_vec()),
        }
    }

    /// Bytes of the entry in the file, without padding.
    fn len(&self) -> u64 {
        let text = self.names.0.len() + self.names.1.len();
        FIXED as u64 + u64::from(self.extra_len) + text as u64
    }

    /// Checks the place and size of its L1 table.
    pub(crate) fn check(&self, geometry: &Geometry) -> Result<()> {
        let bytes = u64::from(self.l1_size) * 8;
        match bytes {
            0 => Ok(()),
            _ => geometry
                .check_table(self.l1_offset, bytes, MAX_L1_BYTES)
                .map_err(|fault| {
                    let message = format!("Snapshot L1 table {fault}");
                    Error::new(ErrorKind::SnapshotL1(fault), message)
                }),
        }
    }

    /// Appends the entry as it is in the file, with all extra data of version 3.
    pub(crate) fn encode(&self, out: &mut Vec<u8>, disk_size: u64) {
        let start = out.len();
        out.extend_from_slice(&self.l1_offset.to_be_bytes());
        out.extend_from_slice(&self.l1_size.to_be_bytes());
        out.extend_from_slice(&(self.names.0.len() as u16).to_be_bytes());
        out.extend_from_slice(&(self.names.1.len() as u16).to_be_bytes());
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
        out.extend_from_slice(&self.names.0);
        out.extend_from_slice(&self.names.1);
        let len = out.len() - start;
        out.resize(start + len.next_multiple_of(8), 0);
    }
}
