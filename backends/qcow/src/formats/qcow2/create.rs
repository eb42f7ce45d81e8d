//! Creating a qcow2 image.

use crate::error::{Error, Result};
use crate::formats::qcow2::layout::address::{ClusterIndex, HostOffset};
use crate::formats::qcow2::layout::extension::kind;
use crate::formats::qcow2::layout::feature;
use crate::formats::qcow2::layout::geometry::{Geometry, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES};
use crate::formats::qcow2::layout::header::{self, CRYPT_AES, Header, LENGTH_V3};
use crate::formats::qcow2::layout::refcount::{refcount_ones, to_bytes};
use crate::options::{CompressionType, CreateOptions, Preallocation};
use crate::storage::Storage;

/// Options that are out of range, or contradict each other.
pub(super) fn check(options: &CreateOptions) -> Result<()> {
    let wrong = |message: &str| Err(Error::invalid(message));
    if !options.cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&options.cluster_size) {
        return wrong("Cluster size must be a power of two between 512 and 2048k");
    }
    if !options.refcount_bits.is_power_of_two() || options.refcount_bits > 64 {
        return wrong("Refcount width must be a power of two and may not exceed 64 bits");
    }
    if !options.size.is_multiple_of(512) {
        return wrong("The image size must be a multiple of 512 bytes");
    }
    if !(2..=3).contains(&options.version) {
        return wrong("Unknown version: it must be 2 or 3");
    }
    if options.version < 3 {
        let needs = |what: &str| {
            wrong(&format!(
                "{what} compatibility level 1.1 and above (use version=v3 or greater)"
            ))
        };
        if options.refcount_bits != 16 {
            return needs("Different refcount widths than 16 bits require");
        }
        if options.lazy_refcounts {
            return needs("Lazy refcounts only supported with");
        }
        if options.extended_l2 {
            return needs("Extended L2 entries are only supported with");
        }
        if options.data_file.is_some() {
            return needs("External data files are only supported with");
        }
        if options.compression_type != CompressionType::Zlib {
            return needs("Non-zlib compression type is only supported with");
        }
    }
    if options.extended_l2 && options.cluster_size < 16384 {
        return wrong(
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
        );
    }
    check_files(options)
}

fn check_files(options: &CreateOptions) -> Result<()> {
    let wrong = |message: &str| Err(Error::invalid(message));
    if options.backing_file.is_some() && options.backing_format.is_none() {
        return wrong("Backing format must be given along with the backing file");
    }
    if options.backing_format.is_some() && options.backing_file.is_none() {
        return wrong("Backing format cannot be used without backing file");
    }
    if options
        .backing_file
        .as_ref()
        .is_some_and(|name| name.len() > 1023 || name.is_empty())
    {
        return wrong("Backing file name must have 1 to 1023 bytes");
    }
    if options.data_file_raw && options.data_file.is_none() {
        return wrong("data-file-raw requires data-file");
    }
    if options.data_file_raw && options.backing_file.is_some() {
        return wrong("Backing file and data-file-raw cannot be used at the same time");
    }
    if options.aes && options.initial_preallocation() != Preallocation::Off {
        return wrong("An encrypted image cannot be preallocated");
    }
    if options.backing_file.is_some()
        && options.preallocation != Preallocation::Off
        && !options.extended_l2
    {
        return wrong(
            "Backing file and preallocation can only be used at the same time if extended_l2 is enabled",
        );
    }
    Ok(())
}

/// Where the tables of a new image lie: in this order, from cluster 1.
struct Layout {
    refcount_table: u64,
    refcount_blocks: u64,
    l1: u64,
}

impl Layout {
    fn new(geometry: &Geometry, size: u64) -> Result<Self> {
        let l1_bytes = geometry.l1_entries_for(size) * 8;
        if l1_bytes > MAX_L1_BYTES {
            return Err(Error::too_large(
                "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
            ));
        }
        let l1 = geometry.clusters_for(l1_bytes);
        let (mut refcount_table, mut refcount_blocks) = (1, 1);
        loop {
            let total = 1 + refcount_table + refcount_blocks + l1;
            let blocks = total.div_ceil(geometry.refcount_block_entries());
            let table = geometry.clusters_for(blocks * 8);
            if blocks <= refcount_blocks && table <= refcount_table {
                break;
            }
            (refcount_table, refcount_blocks) =
                (table.max(refcount_table), blocks.max(refcount_blocks));
        }
        if refcount_table * geometry.cluster_size()
            > MAX_REFCOUNT_TABLE_BYTES.max(geometry.cluster_size())
        {
            return Err(Error::too_large(
                "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
            ));
        }
        Ok(Self {
            refcount_table,
            refcount_blocks,
            l1,
        })
    }

    fn clusters(&self) -> u64 {
        1 + self.refcount_table + self.refcount_blocks + self.l1
    }
}

/// Writes an image with nothing allocated.
pub(super) fn create(storage: &dyn Storage, options: &CreateOptions) -> Result<()> {
    let failed = |error| Error::io("cannot write metadata", error);
    let mut header = new_header(options);
    let geometry = header.geometry();
    let layout = Layout::new(&geometry, options.size)?;
    let offset = |cluster: u64| geometry.offset_of(ClusterIndex(cluster));
    let blocks_at = 1 + layout.refcount_table;
    header.refcount_table_offset = offset(1).0;
    header.refcount_table_clusters = layout.refcount_table as u32;
    // A disk without bytes has no L1 table.
    header.l1_size = geometry.l1_entries_for(options.size) as u32;
    header.l1_offset = match header.l1_size {
        0 => 0,
        _ => offset(blocks_at + layout.refcount_blocks).0,
    };
    let table: Vec<u64> = (blocks_at..blocks_at + layout.refcount_blocks)
        .map(|cluster| offset(cluster).0)
        .collect();
    // As long as what is in it: the L1 table need not fill its last cluster.
    let end = match header.l1_size {
        0 => offset(layout.clusters()).0,
        entries => header.l1_offset + u64::from(entries) * 8,
    };
    let write =
        |at: HostOffset, bytes: &[u8]| storage.write(at.0, &bytes, 0, bytes.len()).map_err(failed);
    // Metadata without holes: an image that takes less space than it has clusters passes for preallocated.
    let zeroes = vec![0u8; end.min(256 << 10) as usize];
    for at in (0..end).step_by(256 << 10) {
        let len = zeroes.len().min((end - at) as usize);
        write(HostOffset(at), zeroes.get(..len).unwrap_or_default())?;
    }
    write(offset(1), &to_bytes(&table))?;
    write(
        offset(blocks_at),
        &refcount_ones(&geometry, layout.clusters(), layout.refcount_blocks),
    )?;
    storage.set_len(end).map_err(failed)?;
    let mut sync = || {
        storage
            .sync()
            .map_err(|error| Error::io("flush error", error))
    };
    header::place::write_new(storage, &header, &mut sync)?;
    sync()
}

fn new_header(options: &CreateOptions) -> Header {
    let mut header = Header {
        version: options.version,
        backing: options.backing_file.clone(),
        cluster_bits: options.cluster_size.trailing_zeros(),
        crypt_method: if options.aes { CRYPT_AES } else { 0 },
        size: options.size,
        l1_size: 0,
        l1_offset: 0,
        refcount_table_offset: 0,
        refcount_table_clusters: 0,
        snapshots: 0,
        snapshots_offset: 0,
        incompatible: 0,
        compatible: 0,
        autoclear: 0,
        refcount_order: options.refcount_bits.trailing_zeros(),
        compression: options.compression_type,
        header_length: LENGTH_V3,
        unknown_fields: vec![0; 7],
        extensions: Vec::new(),
    };
    let set = |condition: bool, bits: &mut u64, bit: u64| *bits |= if condition { bit } else { 0 };
    set(
        options.lazy_refcounts,
        &mut header.compatible,
        feature::LAZY_REFCOUNTS,
    );
    set(
        options.extended_l2,
        &mut header.incompatible,
        feature::EXTENDED_L2,
    );
    set(
        options.data_file.is_some(),
        &mut header.incompatible,
        feature::EXTERNAL_DATA,
    );
    set(
        options.compression_type != CompressionType::Zlib,
        &mut header.incompatible,
        feature::COMPRESSION,
    );
    set(
        options.data_file_raw,
        &mut header.autoclear,
        feature::RAW_EXTERNAL,
    );
    if let Some(format) = options.backing_format {
        header.set_extension(
            kind::BACKING_FORMAT,
            Some(format.name().as_bytes().to_vec()),
        );
    }
    if let Some(name) = &options.data_file {
        header.set_extension(kind::DATA_FILE, Some(name.as_bytes().to_vec()));
    }
    header
}
