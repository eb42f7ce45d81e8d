//! The bitmap directory: persistent dirty bitmaps as they are described in the file.

use crate::error::{Error, Result, TableFault};
use crate::formats::qcow2::layout::big_endian::{be32, be64};
use crate::formats::qcow2::layout::extension::kind;
use crate::formats::qcow2::layout::feature;
use crate::formats::qcow2::layout::geometry::{Geometry, HOST_LIMIT, OFFSET_MASK};
use crate::formats::qcow2::layout::header::Header;
use crate::report::BitmapInfo;
use crate::storage::Storage;

const MAX_BITMAPS: u32 = 65535;
const MAX_NAME: usize = 1023;
const MAX_DATA_BYTES: u64 = 512 << 20;
const MAX_DIRECTORY_BYTES: u64 = 65535 * 1024;
/// Largest bitmap table, in entries.
const MAX_TABLE_ENTRIES: u32 = 0x800_0000;
const FIXED: usize = 24;

const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;
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
        let wrong = |what: String| Err(Error::corrupt(format!("bitmaps_ext: {what}")));
        if data.len() != 24 {
            return wrong("Invalid extension length".into());
        }
        let extension = Self {
            count: be32(data, 0),
            directory_size: be64(data, 8),
            directory_offset: be64(data, 16),
        };
        let (count, size) = (extension.count, extension.directory_size);
        if be32(data, 4) != 0 {
            return wrong("Reserved field is not zero".into());
        }
        if count > MAX_BITMAPS {
            return wrong(format!(
                "Image has {count} bitmaps, exceeding the supported maximum of {MAX_BITMAPS}"
            ));
        }
        if count == 0 {
            return Err(Error::corrupt("found bitmaps extension with zero bitmaps"));
        }
        match header
            .geometry()
            .check_table(extension.directory_offset, size, MAX_DIRECTORY_BYTES)
        {
            Ok(()) => {}
            Err(TableFault::Misplaced) => return wrong("invalid bitmap directory offset".into()),
            Err(TableFault::TooLarge) => {
                return wrong(format!(
                    "bitmap directory size ({size}) exceeds the maximum supported size ({MAX_DIRECTORY_BYTES})"
                ));
            }
        }
        if size == 0 {
            return Err(Error::corrupt("Requested bitmap directory size is zero"));
        }
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
        })
    }

    /// The first entry of a directory, and how long it is.
    fn parse(bytes: &[u8]) -> Result<(Self, usize)> {
        let broken = || Error::corrupt("Broken bitmap directory");
        let fixed = bytes.get(..FIXED).ok_or_else(broken)?;
        let name_len = usize::from(fixed[18]) << 8 | usize::from(fixed[19]);
        let extra_len = be32(fixed, 20) as usize;
        let name_at = FIXED.saturating_add(extra_len);
        let len = name_at.saturating_add(name_len).next_multiple_of(8);
        let name = bytes
            .get(name_at..name_at.saturating_add(name_len))
            .filter(|_| len <= bytes.len())
            .ok_or_else(broken)?;
        if extra_len > 0 {
            return Err(Error::unsupported("Bitmap extra data is not supported"));
        }
        let bitmap = Self {
            table_offset: be64(fixed, 0),
            table_size: be32(fixed, 8),
            flags: be32(fixed, 12),
            granularity_bits: fixed[17],
            name: String::from_utf8_lossy(name).into_owned(),
        };
        if !(1..=MAX_NAME).contains(&name_len)
            || fixed[16] != 1
            || !(9..=31).contains(&bitmap.granularity_bits)
            || bitmap.flags & !(IN_USE | AUTO) != 0
        {
            return Err(bitmap.outside_limits());
        }
        Ok((bitmap, len))
    }

    fn outside_limits(&self) -> Error {
        let name = &self.name;
        Error::corrupt(format!("Bitmap '{name}' doesn't satisfy the constraints"))
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.table_offset.to_be_bytes());
        out.extend_from_slice(&self.table_size.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&[1, self.granularity_bits]);
        out.extend_from_slice(&(self.name.len() as u16).to_be_bytes());
        out.extend_from_slice(&[0; 4]);
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
        let table_bytes = u64::from(self.table_size) * 8;
        let room = u64::from(self.table_size) << geometry.cluster_bits;
        let bytes = self.data_bytes(size);
        if !(1..=MAX_TABLE_ENTRIES).contains(&self.table_size)
            || room > MAX_DATA_BYTES
            || geometry
                .check_table(self.table_offset, table_bytes, u64::MAX)
                .is_err()
            || !self.in_use() && bytes > room
        {
            return Err(self.outside_limits());
        }
        if !self.in_use() && geometry.clusters_for(bytes) != u64::from(self.table_size) {
            let name = &self.name;
            return Err(Error::corrupt(format!(
                "Could not read bitmap '{name}' from image: Invalid argument"
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
        if bitmaps.len() == extension.count as usize && rest.len() >= FIXED {
            return Err(Error::corrupt(
                "More bitmaps found than specified in header extension",
            ));
        }
        let (bitmap, len) = Bitmap::parse(rest)?;
        bitmap.check(&header.geometry(), header.size)?;
        bitmaps.push(bitmap);
        rest = rest.get(len..).unwrap_or_default();
    }
    if bitmaps.len() < extension.count as usize {
        return Err(Error::corrupt(
            "Less bitmaps found than specified in header extension",
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
