//! The bitmap directory: persistent dirty bitmaps as they are described in the file.

use crate::big_endian::{be32, be64};
use crate::error::{Error, Result, TableFault};
use crate::extension::kind;
use crate::feature;
use crate::geometry::{Geometry, HOST_LIMIT, OFFSET_MASK};
use crate::header::Header;
use crate::report::BitmapInfo;
use crate::storage::Storage;

const MAX_BITMAPS: u32 = 65535;
const MAX_NAME: usize = 1023;
const MAX_DATA_BYTES: u64 = 512 << 20;
const MAX_DIRECTORY_BYTES: u64 = 65535 * (24 + 1023 + 1);
/// Largest bitmap table, in entries.
const MAX_TABLE_ENTRIES: u32 = 0x800_0000;
const FIXED: usize = 24;

const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;
const EXTRA_COMPATIBLE: u32 = 1 << 2;
/// A bitmap table entry without a cluster: all ones instead of all zeroes.
pub(crate) const ALL_ONES: u64 = 1;

/// One entry of the bitmap directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bitmap {
    pub(crate) table_offset: u64,
    pub(crate) table_size: u32,
    pub(crate) flags: u32,
    pub(crate) granularity_bits: u8,
    pub(crate) name: String,
    extra: Vec<u8>,
}

/// The bitmaps extension of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BitmapsExtension {
    pub(crate) count: u32,
    pub(crate) directory_size: u64,
    pub(crate) directory_offset: u64,
}

impl BitmapsExtension {
    /// The extension, if the image has one that can be trusted: the autoclear bit says so.
    pub(crate) fn of(header: &Header) -> Result<Option<Self>> {
        let Some(data) = header.extension(kind::BITMAPS) else {
            return Ok(None);
        };
        if header.autoclear & feature::BITMAPS == 0 {
            return Ok(None);
        }
        if data.len() != 24 {
            return Err(Error::corrupt(format!(
                "bitmaps extension has {} bytes, not 24",
                data.len()
            )));
        }
        let extension = Self {
            count: be32(data, 0),
            directory_size: be64(data, 8),
            directory_offset: be64(data, 16),
        };
        if extension.count == 0 || extension.count > MAX_BITMAPS {
            return Err(Error::corrupt(format!(
                "invalid number of bitmaps: {}",
                extension.count
            )));
        }
        let geometry = header.geometry();
        let (offset, size) = (extension.directory_offset, extension.directory_size);
        geometry
            .check_table(offset, size, MAX_DIRECTORY_BYTES)
            .map_err(|fault| fault.of("bitmap directory"))?;
        Ok(Some(extension))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(24);
        data.extend_from_slice(&self.count.to_be_bytes());
        data.extend_from_slice(&[0; 4]);
        data.extend_from_slice(&self.directory_size.to_be_bytes());
        data.extend_from_slice(&self.directory_offset.to_be_bytes());
        data
    }
}

impl Bitmap {
    /// A new bitmap without a table yet.
    pub(crate) fn new(name: &str, granularity: u64, enabled: bool) -> Result<Self> {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(Error::invalid(format!(
                "a bitmap's name must have 1 to {MAX_NAME} bytes"
            )));
        }
        if !granularity.is_power_of_two() || !(512..=1 << 31).contains(&granularity) {
            return Err(Error::invalid(
                "a bitmap's granularity must be a power of two from 512 bytes to 2 GiB",
            ));
        }
        Ok(Self {
            table_offset: 0,
            table_size: 0,
            flags: if enabled { AUTO } else { 0 },
            granularity_bits: granularity.trailing_zeros() as u8,
            name: name.to_owned(),
            extra: Vec::new(),
        })
    }

    fn parse(bytes: &[u8]) -> Result<(Self, usize)> {
        let cut = || Error::corrupt("the bitmap directory is cut off");
        let fixed = bytes.get(..FIXED).ok_or_else(cut)?;
        let name_len = usize::from(fixed[18]) << 8 | usize::from(fixed[19]);
        let extra_len = be32(fixed, 20) as usize;
        let extra = bytes
            .get(FIXED..FIXED.saturating_add(extra_len))
            .ok_or_else(cut)?;
        let name = bytes
            .get(FIXED + extra_len..FIXED + extra_len + name_len)
            .ok_or_else(cut)?;
        let flags = be32(fixed, 12);
        let name = String::from_utf8_lossy(name).into_owned();
        if fixed[16] != 1 {
            return Err(Error::unsupported(format!(
                "bitmap '{name}' has unknown type {}",
                fixed[16]
            )));
        }
        if name_len > MAX_NAME
            || !(9..=31).contains(&fixed[17])
            || flags & !(IN_USE | AUTO | EXTRA_COMPATIBLE) != 0
        {
            return Err(Error::corrupt(format!(
                "bitmap '{name}' has an invalid directory entry"
            )));
        }
        if extra_len > 0 && flags & EXTRA_COMPATIBLE == 0 {
            return Err(Error::unsupported(format!(
                "bitmap '{name}' has unknown extra data"
            )));
        }
        let bitmap = Self {
            table_offset: be64(fixed, 0),
            table_size: be32(fixed, 8),
            flags,
            granularity_bits: fixed[17],
            name,
            extra: extra.to_vec(),
        };
        Ok((bitmap, (FIXED + extra_len + name_len).next_multiple_of(8)))
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.table_offset.to_be_bytes());
        out.extend_from_slice(&self.table_size.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&[1, self.granularity_bits]);
        out.extend_from_slice(&(self.name.len() as u16).to_be_bytes());
        out.extend_from_slice(&(self.extra.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.extra);
        out.extend_from_slice(self.name.as_bytes());
        let len = out.len() - start;
        out.resize(start + len.next_multiple_of(8), 0);
    }

    pub(crate) fn in_use(&self) -> bool {
        self.flags & IN_USE != 0
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.flags & AUTO != 0
    }

    pub(crate) fn set_in_use(&mut self, in_use: bool) {
        self.flags = if in_use {
            self.flags | IN_USE
        } else {
            self.flags & !IN_USE
        };
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.flags = if enabled {
            self.flags | AUTO
        } else {
            self.flags & !AUTO
        };
    }

    pub(crate) fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// Bytes of the bitmap of a disk of `size` bytes.
    pub(crate) fn data_bytes(&self, size: u64) -> u64 {
        size.div_ceil(self.granularity()).div_ceil(8)
    }

    /// Checks the table against the size of the disk.
    pub(crate) fn check(&self, geometry: &Geometry, size: u64) -> Result<()> {
        let what = format!("table of bitmap '{}'", self.name);
        if self.table_size > MAX_TABLE_ENTRIES {
            return Err(TableFault::TooLarge.of(&what));
        }
        if self.table_size > 0 {
            let table_bytes = u64::from(self.table_size) * 8;
            geometry
                .check_table(self.table_offset, table_bytes, u64::MAX)
                .map_err(|fault| fault.of(&what))?;
        }
        let bytes = self.data_bytes(size);
        if bytes > MAX_DATA_BYTES
            || u64::from(self.table_size) << geometry.cluster_bits > 2 * MAX_DATA_BYTES
        {
            return Err(Error::corrupt(format!(
                "bitmap '{}' is too large",
                self.name
            )));
        }
        if !self.in_use() && geometry.clusters_for(bytes) != u64::from(self.table_size) {
            return Err(Error::corrupt(format!(
                "bitmap '{}' does not fit the size of the disk",
                self.name
            )));
        }
        Ok(())
    }

    pub(crate) fn info(&self) -> BitmapInfo {
        BitmapInfo {
            name: self.name.clone(),
            granularity: self.granularity(),
            in_use: self.in_use(),
            auto: self.is_enabled(),
        }
    }

    /// The entries of its table.
    pub(crate) fn table(&self, storage: &dyn Storage) -> Result<Vec<u64>> {
        let mut bytes = vec![0u8; self.table_size as usize * 8];
        let len = bytes.len();
        storage
            .read(self.table_offset, &mut &mut bytes[..], 0, len)
            .map_err(|error| Error::io("cannot read a bitmap table", error))?;
        Ok(bytes.chunks_exact(8).map(|word| be64(word, 0)).collect())
    }
}

/// Checks an entry of a bitmap table; returns the cluster it points to, if any.
pub(crate) fn table_entry(geometry: &Geometry, entry: u64) -> Result<Option<u64>> {
    let offset = entry & OFFSET_MASK;
    let reserved = if offset == 0 {
        !(OFFSET_MASK | ALL_ONES)
    } else {
        !OFFSET_MASK
    };
    if entry & reserved != 0
        || !offset.is_multiple_of(geometry.cluster_size())
        || offset >= HOST_LIMIT
    {
        return Err(Error::corrupt(format!(
            "bitmap table entry {entry:#018x} is invalid"
        )));
    }
    Ok((offset != 0).then_some(offset))
}

/// Reads the directory.
pub(crate) fn read_directory(storage: &dyn Storage, header: &Header) -> Result<Vec<Bitmap>> {
    let Some(extension) = BitmapsExtension::of(header)? else {
        return Ok(Vec::new());
    };
    // No more than the file has: the size in the header alone must not make us allocate.
    let file_len = storage
        .len()
        .map_err(|error| Error::io("cannot find the size", error))?;
    if extension
        .directory_offset
        .saturating_add(extension.directory_size)
        > file_len.next_multiple_of(1 << header.cluster_bits)
    {
        return Err(Error::corrupt(
            "the bitmap directory lies beyond the end of the file",
        ));
    }
    let mut bytes = vec![0u8; extension.directory_size as usize];
    let len = bytes.len();
    storage
        .read(extension.directory_offset, &mut &mut bytes[..], 0, len)
        .map_err(|error| Error::io("cannot read the bitmap directory", error))?;
    let (mut rest, mut bitmaps) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let (bitmap, len) = Bitmap::parse(rest)?;
        bitmap.check(&header.geometry(), header.size)?;
        bitmaps.push(bitmap);
        rest = rest.get(len..).unwrap_or_default();
    }
    if bitmaps.len() != extension.count as usize {
        return Err(Error::corrupt(
            "the bitmap directory does not have as many entries as the header says",
        ));
    }
    Ok(bitmaps)
}

/// The directory as it is in the file.
pub(crate) fn encode_directory(bitmaps: &[Bitmap]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for bitmap in bitmaps {
        bitmap.encode(&mut bytes);
    }
    bytes
}
