//! Storing bitmaps: bits, tables, directory, and the write of the header that switches to them.

use crate::error::{Error, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::bitmaps::{Bits, Entry};
use crate::formats::qcow2::engine::Engine;
use crate::formats::qcow2::layout::address::HostOffset;
use crate::formats::qcow2::layout::bitmap::{
    ALL_ONES, Bitmap, BitmapsExtension, encode_directory, read_directory, table_entry,
};
use crate::formats::qcow2::layout::extension::kind;
use crate::formats::qcow2::layout::feature;
use crate::formats::qcow2::layout::refcount::to_bytes;

impl Qcow2 {
    pub(super) fn read_bits(&self, meta: &Bitmap) -> Result<Vec<u8>> {
        let engine = self.engine_exclusive();
        let geometry = *engine.geometry();
        drop(engine);
        let mut bits = vec![0u8; meta.data_bytes(self.size()) as usize];
        for (chunk, entry) in bits
            .chunks_mut(self.cluster_size as usize)
            .zip(meta.table(&*self.storage)?)
        {
            match table_entry(&geometry, entry)? {
                Some(offset) => {
                    let len = chunk.len();
                    self.storage
                        .read(offset, &mut &mut chunk[..], 0, len)
                        .map_err(|error| Error::io("cannot read a bitmap", error))?;
                }
                None if entry & ALL_ONES != 0 => chunk.fill(0xff),
                None => {}
            }
        }
        Ok(bits)
    }

    /// Writes bits to new clusters; returns the table, if there is to be another one than before.
    fn write_bits(&self, engine: &mut Engine, entry: &Entry) -> Result<Option<Vec<u64>>> {
        match &entry.bits {
            Bits::Stored => Ok(None),
            Bits::Moved => self.copy_bits(engine, &entry.meta),
            Bits::Blank => {
                let bytes = entry.meta.data_bytes(self.size());
                let entries = engine.geometry().clusters_for(bytes);
                Ok(Some(vec![0; entries as usize]))
            }
            Bits::Memory(bits) => {
                let chunks = bits.chunks(self.cluster_size as usize);
                let table = chunks.map(|chunk| self.write_chunk(engine, chunk));
                table.collect::<Result<Vec<_>>>().map(Some)
            }
        }
    }

    /// Stores bits that are in the file anew, unless their table is damaged.
    fn copy_bits(&self, engine: &mut Engine, meta: &Bitmap) -> Result<Option<Vec<u64>>> {
        let geometry = *engine.geometry();
        let old = meta.table(&*self.storage)?;
        if old
            .iter()
            .any(|entry| table_entry(&geometry, *entry).is_err())
        {
            return Ok(None);
        }
        let mut cluster = vec![0u8; self.cluster_size as usize];
        let mut table = Vec::with_capacity(old.len());
        for entry in old {
            table.push(match table_entry(&geometry, entry)? {
                Some(offset) => {
                    let len = cluster.len();
                    self.storage
                        .read(offset, &mut &mut cluster[..], 0, len)
                        .map_err(|error| Error::io("cannot read a bitmap", error))?;
                    self.write_chunk(engine, &cluster)?
                }
                None => entry,
            });
        }
        Ok(Some(table))
    }

    /// Stores a cluster's worth of bits; returns the entry of the table.
    fn write_chunk(&self, engine: &mut Engine, chunk: &[u8]) -> Result<u64> {
        if chunk.iter().all(|byte| *byte == 0) {
            return Ok(0);
        }
        let (host, _) = self.run_locked(engine, |engine| engine.allocate(1))?;
        let mut cluster = chunk.to_vec();
        cluster.resize(self.cluster_size as usize, 0);
        self.write_file(host.0, &cluster)?;
        Ok(host.0)
    }

    /// Makes `list` the bitmaps of the image: new bits of some, and the directory, beside the old; then the header;
    /// then the old ones are freed. The same write of the header may change the size of the disk.
    pub(super) fn store_list(
        &self,
        engine: &mut Engine,
        list: &mut [Entry],
        size: Option<u64>,
    ) -> Result<()> {
        engine.check_usable()?;
        let old_extension = BitmapsExtension::of(&engine.header)?;
        let old = read_directory(&*self.storage, &engine.header)?;
        for entry in list.iter_mut() {
            let Some(table) = self.write_bits(engine, entry)? else {
                continue;
            };
            let clusters = engine.geometry().clusters_for(table.len() as u64 * 8);
            let host = match clusters {
                0 => HostOffset(0),
                clusters => self.run_locked(engine, |engine| engine.allocate_exactly(clusters))?,
            };
            let mut bytes = to_bytes(&table);
            bytes.resize((clusters * self.cluster_size) as usize, 0);
            self.write_file(host.0, &bytes)?;
            entry.meta.table_offset = host.0;
            entry.meta.table_size = table.len() as u32;
            entry.bits = Bits::Stored;
        }
        let metas: Vec<Bitmap> = list.iter().map(|entry| entry.meta.clone()).collect();
        let mut header = engine.header.clone();
        header.size = size.unwrap_or(header.size);
        if metas.is_empty() {
            header.set_extension(kind::BITMAPS, None);
            header.autoclear &= !feature::BITMAPS;
        } else {
            let extension = self.write_directory(engine, &metas)?;
            header.set_extension(kind::BITMAPS, Some(extension.encode()));
            header.autoclear |= feature::BITMAPS;
        }
        let leaves = self.runs_left(engine, old_extension, &old, &metas)?;
        self.commit(engine, true)?;
        // Starts from the header as it is after the commit.
        header.incompatible = engine.header.incompatible;
        self.update_header(engine, header)?;
        for (host, clusters) in leaves {
            let free = self.run_locked(engine, |engine| engine.dereference_run(host, clusters))?;
            self.give_back(engine, &free);
        }
        Ok(())
    }

    fn write_directory(&self, engine: &mut Engine, metas: &[Bitmap]) -> Result<BitmapsExtension> {
        let bytes = encode_directory(metas);
        let size = bytes.len() as u64;
        let clusters = engine.geometry().clusters_for(size);
        let host = self.run_locked(engine, |engine| engine.allocate_exactly(clusters))?;
        self.write_file(host.0, &bytes)?;
        engine.register_metadata("bitmap directory", host, clusters)?;
        Ok(BitmapsExtension {
            count: metas.len() as u32,
            directory_size: size,
            directory_offset: host.0,
        })
    }

    /// What the old directory used and the new one does not, itself included.
    fn runs_left(
        &self,
        engine: &mut Engine,
        extension: Option<BitmapsExtension>,
        old: &[Bitmap],
        new: &[Bitmap],
    ) -> Result<Vec<(HostOffset, u64)>> {
        let geometry = *engine.geometry();
        let mut runs: Vec<(HostOffset, u64)> = Vec::new();
        for bitmap in old {
            if bitmap.table_size == 0
                || new
                    .iter()
                    .any(|kept| kept.table_offset == bitmap.table_offset)
            {
                continue;
            }
            for entry in bitmap.table(&*self.storage)? {
                if let Some(offset) = table_entry(&geometry, entry)? {
                    runs.push((HostOffset(offset), 1));
                }
            }
            runs.push((
                HostOffset(bitmap.table_offset),
                geometry.clusters_for(u64::from(bitmap.table_size) * 8),
            ));
        }
        for (host, clusters) in &runs {
            let last = HostOffset(host.0 + clusters * geometry.cluster_size() - 1);
            if let Err(error) = engine.check_apart("a bitmap", *host, last) {
                self.signal_corruption(engine, &error);
                return Err(error);
            }
        }
        if let Some(extension) = extension {
            runs.push((
                HostOffset(extension.directory_offset),
                geometry.clusters_for(extension.directory_size),
            ));
        }
        Ok(runs)
    }
}
