//! What `info` and `map` report about a qcow2 image.

mod holes;

use std::path::Path;

use qcow_format::Format;

use crate::error::{Error, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::engine::Where;
use crate::formats::qcow2::layout::address::GuestOffset;
use crate::formats::qcow2::layout::big_endian::be64;
use crate::formats::qcow2::layout::extension::kind;
use crate::formats::qcow2::layout::feature;
use crate::formats::qcow2::layout::header::{CRYPT_AES, CRYPT_LUKS, Header};
use crate::formats::qcow2::layout::luks;
use crate::formats::references;
use crate::report::{Encryption, Info, Qcow2Info};
use crate::storage::extent::Extent;

impl Qcow2 {
    /// The first extent of a range, of this image alone.
    pub(crate) fn map(&self, offset: u64, len: u64, path: &Path) -> Result<Extent> {
        let pieces = self.find(|engine| engine.map(GuestOffset(offset), len))?;
        let mut extent: Option<Extent> = None;
        for piece in pieces {
            let (zero, data, compressed) = match piece.place {
                Where::Unallocated => (false, false, false),
                Where::Zero(_) => (true, false, false),
                Where::Data(_) => (false, true, false),
                Where::Compressed { .. } => (false, true, true),
            };
            let host = match piece.place {
                Where::Zero(Some(host)) | Where::Data(host) => Some(host.0),
                Where::Unallocated => piece.reserved.map(|host| host.0),
                _ => None,
            };
            let file = match &self.data {
                Some((_, data_path)) => data_path,
                None => path,
            };
            let next = Extent {
                start: piece.guest.0,
                length: piece.len,
                depth: 0,
                present: piece.place != Where::Unallocated,
                zero,
                data,
                compressed,
                missing: false,
                offset: host,
                file: host.map(|_| file.to_path_buf()),
            };
            match &mut extent {
                None => extent = Some(next),
                Some(first) if joins(first, &next) => first.length += next.length,
                Some(_) => break,
            }
        }
        let extent =
            extent.ok_or_else(|| crate::error::Error::invalid("cannot map an empty range"))?;
        self.look_for_holes(self.look_for_missing(extent)?)
    }

    fn encryption(&self, header: &Header) -> Result<Option<Encryption>> {
        match (header.crypt_method, header.extension(kind::CRYPTO)) {
            (CRYPT_AES, _) => Ok(Some(Encryption::Aes)),
            (CRYPT_LUKS, Some(place)) if place.len() == 16 => {
                luks::read(&*self.storage, be64(place, 0)).map(|luks| Some(Encryption::Luks(luks)))
            }
            (CRYPT_LUKS, _) => Err(Error::corrupt(
                "the image is encrypted and says not where its keys are",
            )),
            _ => Ok(None),
        }
    }

    pub(crate) fn info(&self, path: &Path) -> Result<Info> {
        let bitmaps = self.bitmap_infos()?;
        let engine = self.engine_exclusive();
        let header = &engine.header;
        let qcow2 = Qcow2Info {
            version: header.version,
            compression_type: header.compression,
            lazy_refcounts: header.lazy_refcounts(),
            refcount_bits: header.geometry().refcount_bits(),
            dirty: header.incompatible & feature::DIRTY != 0,
            corrupt: header.incompatible & feature::CORRUPT != 0,
            extended_l2: header.extended_l2(),
            data_file: header
                .external_data()
                .then(|| header.text_extension(kind::DATA_FILE).unwrap_or_default()),
            data_file_raw: header.autoclear & feature::RAW_EXTERNAL != 0,
            bitmaps,
            encryption: self.encryption(header)?,
        };
        Ok(Info {
            filename: path.to_path_buf(),
            format: Format::Qcow2,
            virtual_size: header.size,
            actual_size: self.storage.allocated().unwrap_or(0),
            file_size: self.storage.len().unwrap_or(0),
            cluster_size: Some(self.cluster_size),
            full_backing_filename: header
                .backing
                .as_ref()
                .and_then(|name| references::full_name(path, name)),
            backing_filename: header.backing.clone(),
            backing_format: header.text_extension(kind::BACKING_FORMAT),
            snapshots: self.snapshots(),
            qcow2: Some(qcow2),
        })
    }
}

fn joins(first: &Extent, next: &Extent) -> bool {
    let follows = match (first.offset, next.offset) {
        (None, None) => true,
        (Some(a), Some(b)) => a + first.length == b,
        _ => false,
    };
    follows
        && first.present == next.present
        && first.zero == next.zero
        && first.data == next.data
        && first.compressed == next.compressed
}
