//! The header: fields, limits, encoding.

pub(crate) mod place;

use crate::error::{Error, ErrorKind, Result, TableFault};
use crate::formats::qcow2::layout::big_endian::{be32, be64};
use crate::formats::qcow2::layout::extension::{Extension, kind};
use crate::formats::qcow2::layout::feature;
use crate::formats::qcow2::layout::geometry::{
    Geometry, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, MAX_SNAPSHOTS,
};
use crate::options::CompressionType;

const MAGIC: [u8; 4] = *b"QFI\xfb";
const MAX_BACKING_NAME: u32 = 1023;
/// Length of the version 3 header that this library writes, and of a version 2 header.
pub(crate) const LENGTH_V3: u32 = 112;
const LENGTH_V2: u32 = 72;
/// Methods of encryption: the format's own AES, and LUKS.
pub(crate) const CRYPT_AES: u32 = 1;
pub(crate) const CRYPT_LUKS: u32 = 2;
/// Sectors are written whole or not at all.
pub(crate) const SECTOR: usize = 512;

/// A parsed header with its extensions and the backing file name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) backing: Option<String>,
    pub(crate) cluster_bits: u32,
    pub(crate) size: u64,
    /// 0, or the method of encryption.
    pub(crate) crypt_method: u32,
    pub(crate) l1_size: u32,
    pub(crate) l1_offset: u64,
    pub(crate) refcount_table_offset: u64,
    pub(crate) refcount_table_clusters: u32,
    pub(crate) snapshots: u32,
    pub(crate) snapshots_offset: u64,
    pub(crate) incompatible: u64,
    pub(crate) compatible: u64,
    pub(crate) autoclear: u64,
    pub(crate) refcount_order: u32,
    pub(crate) compression: CompressionType,
    pub(crate) header_length: u32,
    /// Header bytes from 104 on, of fields that only a later version of the format defines; they are preserved.
    pub(crate) unknown_fields: Vec<u8>,
    pub(crate) extensions: Vec<Extension>,
}

impl Header {
    /// Whether `bytes` begin like a qcow2 image.
    pub(crate) fn has_magic(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// The size of cluster 0, which is what [`Header::parse`] needs, from the first 24 bytes.
    pub(crate) fn first_cluster(bytes: &[u8]) -> Result<usize> {
        if !Self::has_magic(bytes) {
            return Err(Error::new(
                ErrorKind::NotThisFormat,
                "image is not in qcow2 format",
            ));
        }
        let version = be32(bytes, 4);
        if !(2..=3).contains(&version) {
            return Err(Error::unsupported(format!(
                "Unsupported qcow2 version {version}"
            )));
        }
        let cluster_bits = be32(bytes, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(Error::corrupt(format!(
                "Unsupported cluster size: 2^{cluster_bits}"
            )));
        }
        Ok(1 << cluster_bits)
    }

    /// Parses cluster 0.
    pub(crate) fn parse(cluster: &[u8]) -> Result<Self> {
        let cluster_size = Self::first_cluster(cluster)?;
        let cluster = cluster
            .get(..cluster_size)
            .ok_or_else(|| Error::corrupt("the header is cut off"))?;
        let version = be32(cluster, 4);
        let v3 = version >= 3;
        let header_length = if v3 { be32(cluster, 100) } else { LENGTH_V2 };
        if v3 && header_length < 104 {
            return Err(Error::corrupt("qcow2 header too short"));
        }
        if header_length as usize > cluster_size {
            return Err(Error::corrupt("qcow2 header exceeds cluster size"));
        }
        let crypt_method = be32(cluster, 32);
        if crypt_method > CRYPT_LUKS {
            return Err(Error::unsupported(format!(
                "Unsupported encryption method {crypt_method}"
            )));
        }
        let (backing_offset, backing_len) = (be64(cluster, 8), be32(cluster, 16));
        let extensions_end =
            backing_position(backing_offset, backing_len, header_length, cluster_size)?;
        let list = cluster
            .get(header_length as usize..extensions_end)
            .unwrap_or_default();
        let extensions = Extension::parse_list(list)?;
        let header = Self {
            version,
            backing: backing_name(cluster, backing_offset, backing_len)?,
            cluster_bits: be32(cluster, 20),
            size: be64(cluster, 24),
            crypt_method,
            l1_size: be32(cluster, 36),
            l1_offset: be64(cluster, 40),
            refcount_table_offset: be64(cluster, 48),
            refcount_table_clusters: be32(cluster, 56),
            snapshots: be32(cluster, 60),
            snapshots_offset: be64(cluster, 64),
            incompatible: if v3 { be64(cluster, 72) } else { 0 },
            compatible: if v3 { be64(cluster, 80) } else { 0 },
            autoclear: if v3 { be64(cluster, 88) } else { 0 },
            refcount_order: if v3 { be32(cluster, 96) } else { 4 },
            compression: compression_type(cluster, v3 && header_length >= 105)?,
            // The specification wants a multiple of 8, and the extensions begin at one, whatever the header says.
            header_length: header_length.next_multiple_of(8),
            unknown_fields: unknown_fields(cluster, header_length as usize),
            extensions,
        };
        header.check()?;
        Ok(header)
    }

    /// Limits of the specification and of QEMU.
    fn check(&self) -> Result<()> {
        feature::check_incompatible(self.incompatible, &self.extensions)?;
        if self.refcount_order > 6 {
            return Err(Error::corrupt(
                "Reference count entry width too large; may not exceed 64 bits",
            ));
        }
        let other_than_zlib = self.compression != CompressionType::Zlib;
        if other_than_zlib != (self.incompatible & feature::COMPRESSION != 0) {
            let must = if other_than_zlib { "must" } else { "must not" };
            return Err(Error::corrupt(format!(
                "qcow2: Compression type incompatible feature bit {must} be set"
            )));
        }
        let geometry = self.geometry();
        if self.extended_l2() && self.cluster_bits < 14 {
            return Err(Error::corrupt(
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
            ));
        }
        let l1_bytes = u64::from(self.l1_size) * 8;
        if l1_bytes > MAX_L1_BYTES {
            return Err(Error::corrupt("Active L1 table too large"));
        }
        let l1_needed = geometry.l1_entries_for(self.size);
        if i32::try_from(l1_needed).is_err() {
            return Err(Error::corrupt("Image is too big"));
        }
        if l1_needed > u64::from(self.l1_size) {
            return Err(Error::corrupt("L1 table is too small"));
        }
        if self.l1_size > 0 {
            geometry
                .check_table(self.l1_offset, l1_bytes, MAX_L1_BYTES)
                .map_err(|fault| fault.of("Active L1 table"))?;
        }
        Ok(())
    }

    /// Refuses an image whose data is encrypted.
    pub(crate) fn check_encryption(&self) -> Result<()> {
        if self.crypt_method != 0 || self.extension(kind::CRYPTO).is_some() {
            return Err(Error::unsupported(
                "the image is encrypted, which is not supported",
            ));
        }
        Ok(())
    }

    /// Checks the place of the snapshot table. It is a method of its own because `check` reports more of what is wrong
    /// there.
    pub(crate) fn check_snapshot_table(&self) -> Result<(), TableFault> {
        match self.snapshots {
            0 => Ok(()),
            1..=MAX_SNAPSHOTS => self
                .geometry()
                .check_table(self.snapshots_offset, 0, u64::MAX),
            _ => Err(TableFault::TooLarge),
        }
    }

    /// Checks the place of the refcount table. It is a method of its own because a repair does not need that table.
    pub(crate) fn check_refcount_table(&self) -> Result<()> {
        let bytes = u64::from(self.refcount_table_clusters) << self.cluster_bits;
        if bytes == 0 {
            return Err(Error::corrupt(
                "Image does not contain a reference count table",
            ));
        }
        // QEMU limits the table's bytes, and one cluster may be larger than that.
        let max = MAX_REFCOUNT_TABLE_BYTES.max(1 << self.cluster_bits);
        self.geometry()
            .check_table(self.refcount_table_offset, bytes, max)
            .map_err(|fault| fault.of("Reference count table"))
    }

    pub(crate) fn geometry(&self) -> Geometry {
        Geometry {
            cluster_bits: self.cluster_bits,
            refcount_order: self.refcount_order,
            extended_l2: self.extended_l2(),
            version: self.version,
        }
    }

    pub(crate) fn extended_l2(&self) -> bool {
        self.incompatible & feature::EXTENDED_L2 != 0
    }

    pub(crate) fn external_data(&self) -> bool {
        self.incompatible & feature::EXTERNAL_DATA != 0
    }

    pub(crate) fn lazy_refcounts(&self) -> bool {
        self.compatible & feature::LAZY_REFCOUNTS != 0
    }

    pub(crate) fn extension(&self, kind: u32) -> Option<&[u8]> {
        // QEMU uses the last one of a kind.
        self.extensions
            .iter()
            .rev()
            .find(|extension| extension.kind == kind)
            .map(|extension| &extension.data[..])
    }

    /// Sets or removes the extension of this kind.
    pub(crate) fn set_extension(&mut self, kind: u32, data: Option<Vec<u8>>) {
        self.extensions.retain(|extension| extension.kind != kind);
        if let Some(data) = data {
            self.extensions.push(Extension { kind, data });
        }
    }

    pub(crate) fn text_extension(&self, kind: u32) -> Option<String> {
        self.extension(kind)
            .map(|data| String::from_utf8_lossy(data).into_owned())
    }

    /// Bytes of the fields, which the extensions follow.
    fn fields_len(&self) -> usize {
        self.header_length as usize
    }

    /// The fields; the backing file's name is at `backing_offset`.
    fn encode_fields(&self, backing_offset: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(SECTOR);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.version.to_be_bytes());
        out.extend_from_slice(&backing_offset.to_be_bytes());
        out.extend_from_slice(&(self.backing.as_ref().map_or(0, String::len) as u32).to_be_bytes());
        out.extend_from_slice(&self.cluster_bits.to_be_bytes());
        out.extend_from_slice(&self.size.to_be_bytes());
        out.extend_from_slice(&self.crypt_method.to_be_bytes());
        out.extend_from_slice(&self.l1_size.to_be_bytes());
        out.extend_from_slice(&self.l1_offset.to_be_bytes());
        out.extend_from_slice(&self.refcount_table_offset.to_be_bytes());
        out.extend_from_slice(&self.refcount_table_clusters.to_be_bytes());
        out.extend_from_slice(&self.snapshots.to_be_bytes());
        out.extend_from_slice(&self.snapshots_offset.to_be_bytes());
        if self.version >= 3 {
            out.extend_from_slice(&self.incompatible.to_be_bytes());
            out.extend_from_slice(&self.compatible.to_be_bytes());
            out.extend_from_slice(&self.autoclear.to_be_bytes());
            out.extend_from_slice(&self.refcount_order.to_be_bytes());
            out.extend_from_slice(&self.header_length.to_be_bytes());
            if self.header_length > 104 {
                out.push(u8::from(self.compression == CompressionType::Zstd));
                out.extend_from_slice(&self.unknown_fields);
            }
        }
        out
    }
}

/// The unknown fields, padded with zeroes to a multiple of 8.
fn unknown_fields(cluster: &[u8], header_length: usize) -> Vec<u8> {
    let mut fields = cluster.get(105..header_length).unwrap_or_default().to_vec();
    fields.resize(header_length.next_multiple_of(8).saturating_sub(105), 0);
    fields
}

/// Checks where the backing file name lies and returns where the extensions must end.
fn backing_position(
    offset: u64,
    len: u32,
    header_length: u32,
    cluster_size: usize,
) -> Result<usize> {
    if offset == 0 {
        return Ok(cluster_size);
    }
    if len > MAX_BACKING_NAME {
        return Err(Error::corrupt("Backing file name too long"));
    }
    let end = offset.checked_add(u64::from(len));
    if offset < u64::from(header_length) || end.is_none_or(|end| end > cluster_size as u64) {
        return Err(Error::corrupt("Invalid backing file offset"));
    }
    Ok(offset as usize)
}

fn backing_name(cluster: &[u8], offset: u64, len: u32) -> Result<Option<String>> {
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    let bytes = cluster
        .get(offset as usize..offset as usize + len as usize)
        .unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(name) => Ok(Some(name.to_owned())),
        Err(_) => Err(Error::corrupt("the backing file name is not valid UTF-8")),
    }
}

fn compression_type(cluster: &[u8], present: bool) -> Result<CompressionType> {
    match cluster.get(104) {
        Some(0) => Ok(CompressionType::Zlib),
        Some(1) if present => Ok(CompressionType::Zstd),
        Some(other) if present => Err(Error::unsupported(format!(
            "qcow2: unknown compression type: {other}"
        ))),
        _ => Ok(CompressionType::Zlib),
    }
}
