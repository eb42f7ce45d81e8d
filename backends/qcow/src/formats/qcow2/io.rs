//! Reading and writing the disk.

use std::sync::{Arc, MutexGuard, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::formats::backing_disk::BackingDisk;
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::compressed;
use crate::formats::qcow2::engine::{ClearMode, Piece, Segment, Where};
use crate::formats::qcow2::layout::address::{GuestOffset, HostOffset};
use crate::formats::qcow2::layout::feature;
use crate::storage::Storage;
use crate::storage::buffer::{Destination, Source};

/// The compressed cluster read last: its host offset and its content.
type Decompressed = Option<(HostOffset, Arc<Vec<u8>>)>;

/// Zeroes are written in pieces of at most this size.
const ZERO_CHUNK: u64 = 2 << 20;

impl Qcow2 {
    /// Where guest data is: the external data file, if there is one.
    pub(crate) fn data_storage(&self) -> Result<&dyn Storage> {
        match &self.data {
            Some((data, _)) => Ok(&**data),
            None if self.external => Err(Error::new(
                ErrorKind::Backing,
                "the image's external data file was not opened",
            )),
            None => Ok(&*self.storage),
        }
    }

    fn aligned(&self, offset: u64, len: u64) -> std::ops::Range<u64> {
        let size = self.cluster_size;
        offset / size * size..(offset + len).next_multiple_of(size)
    }

    pub(crate) fn read(
        &self,
        backing: Option<&dyn BackingDisk>,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> Result<()> {
        let _guard = self
            .writable
            .then(|| self.ranges.shared(offset..offset + len as u64));
        self.read_unlocked(backing, offset, dst, at, len)
    }

    fn read_unlocked(
        &self,
        backing: Option<&dyn BackingDisk>,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> Result<()> {
        let mut done = 0;
        while done < len {
            let start = offset + done as u64;
            for piece in self.find(|engine| engine.map(GuestOffset(start), (len - done) as u64))? {
                self.read_piece(backing, &piece, dst, at + done)?;
                done += piece.len as usize;
            }
        }
        Ok(())
    }

    fn read_piece(
        &self,
        backing: Option<&dyn BackingDisk>,
        piece: &Piece,
        dst: &mut dyn Destination,
        at: usize,
    ) -> Result<()> {
        let len = piece.len as usize;
        match (piece.place, backing) {
            (Where::Data(host), _) => {
                self.check_missing(host, piece.len)?;
                self.data_storage()?
                    .read(host.0, dst, at, len)
                    .map_err(|error| Error::io("read error", error))
            }
            (Where::Zero(_), _) => {
                dst.zero(at, len);
                Ok(())
            }
            (Where::Unallocated, Some(backing)) => backing.read_part(piece.guest.0, dst, at, len),
            (Where::Unallocated, None) if self.engine_read().header.backing.is_some() => {
                Err(Error::new(
                    ErrorKind::Backing,
                    "the backing file, which holds what is read here, was not opened",
                ))
            }
            (Where::Unallocated, None) => {
                dst.zero(at, len);
                Ok(())
            }
            (Where::Compressed { host, len: packed }, _) => {
                if len as u64 == self.cluster_size
                    && let Some(cluster) = dst.slice_mut(at, len)
                {
                    return self.decompress_into(host, packed, cluster);
                }
                let cluster = self.decompress(host, packed)?;
                let start = (piece.guest.0 % self.cluster_size) as usize;
                dst.put(at, cluster.get(start..start + len).unwrap_or_default());
                Ok(())
            }
        }
    }

    fn decompressed(&self) -> MutexGuard<'_, Decompressed> {
        self.decompressed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn forget_decompressed(&self) {
        *self.decompressed() = None;
    }

    fn decompress(&self, host: HostOffset, packed: u64) -> Result<Arc<Vec<u8>>> {
        if let Some((key, cluster)) = &*self.decompressed()
            && *key == host
        {
            return Ok(cluster.clone());
        }
        let mut cluster = vec![0u8; self.cluster_size as usize];
        self.decompress_into(host, packed, &mut cluster)?;
        let cluster = Arc::new(cluster);
        *self.decompressed() = Some((host, cluster.clone()));
        Ok(cluster)
    }

    /// Reads the compressed cluster at `host` and unpacks it into `cluster`, which is as long as one.
    fn decompress_into(&self, host: HostOffset, packed: u64, cluster: &mut [u8]) -> Result<()> {
        // A descriptor can count more sectors than a cluster needs; nothing beyond twice a cluster can be of use.
        let packed = packed.min(2 * self.cluster_size) as usize;
        compressed::with_input(packed, |input| {
            self.storage
                .read(host.0, &mut &mut *input, 0, packed)
                .map_err(|error| Error::io("cannot read a compressed cluster", error))?;
            compressed::decompress(self.compression(), input, cluster)
        })
    }

    pub(crate) fn write(
        &self,
        backing: Option<&dyn BackingDisk>,
        offset: u64,
        src: &dyn Source,
        len: usize,
    ) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.data_storage()?;
        self.note_change(offset, len as u64)?;
        {
            let _guard = self.ranges.shared(offset..offset + len as u64);
            if let Some(pieces) =
                self.find(|engine| engine.plan_in_place(GuestOffset(offset), len as u64))?
            {
                return self.write_in_place(offset, src, &pieces);
            }
        }
        let _guard = self.ranges.exclusive(self.aligned(offset, len as u64));
        self.write_allocating(backing, offset, src, len)
    }

    fn write_in_place(&self, offset: u64, src: &dyn Source, pieces: &[Piece]) -> Result<()> {
        for piece in pieces {
            if let Where::Data(host) = piece.place {
                let at = (piece.guest.0 - offset) as usize;
                self.data_storage()?
                    .write(host.0, src, at, piece.len as usize)
                    .map_err(|error| Error::io("write error", error))?;
            }
        }
        Ok(())
    }

    /// The range is locked.
    pub(super) fn write_allocating(
        &self,
        backing: Option<&dyn BackingDisk>,
        offset: u64,
        src: &dyn Source,
        len: usize,
    ) -> Result<()> {
        let end = offset + len as u64;
        let mut at = offset;
        while at < end {
            let plan = self.run(|engine| engine.plan_write(GuestOffset(at), end - at))?;
            let written = plan
                .segments
                .iter()
                .try_for_each(|segment| self.write_segment(backing, segment, offset, src));
            if let Err(error) = written {
                self.run(|engine| engine.abandon_write(&plan))?;
                return Err(error);
            }
            self.run(|engine| engine.finish_write(&plan))?;
            at = plan.end;
        }
        Ok(())
    }

    fn write_segment(
        &self,
        backing: Option<&dyn BackingDisk>,
        segment: &Segment,
        offset: u64,
        src: &dyn Source,
    ) -> Result<()> {
        let failed = |error| Error::io("write error", error);
        let data = self.data_storage()?;
        let (start, end) = (segment.guest.0, segment.guest.0 + segment.len);
        let host = |guest: u64| segment.host.0 + (guest - start);
        // A raw external data file is as long as the disk.
        let end = if self.external {
            end.min(self.size().max(segment.write.end))
        } else {
            end
        };
        for around in [start..segment.write.start, segment.write.end..end] {
            if !around.is_empty() {
                let mut old = vec![0u8; (around.end - around.start) as usize];
                self.read_disk(backing, around.start, &mut old)?;
                data.write(host(around.start), &&old[..], 0, old.len())
                    .map_err(failed)?;
            }
        }
        let len = (segment.write.end - segment.write.start) as usize;
        data.write(
            host(segment.write.start),
            src,
            (segment.write.start - offset) as usize,
            len,
        )
        .map_err(failed)
    }

    /// What the disk holds now; zeroes beyond its end. The range is locked.
    fn read_disk(
        &self,
        backing: Option<&dyn BackingDisk>,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let inside = (self.size().saturating_sub(offset)).min(buf.len() as u64) as usize;
        let (inside, beyond) = buf.split_at_mut(inside);
        beyond.fill(0);
        let len = inside.len();
        self.read_unlocked(backing, offset, &mut &mut *inside, 0, len)
    }

    pub(crate) fn write_zeroes(
        &self,
        backing: Option<&dyn BackingDisk>,
        offset: u64,
        len: u64,
        may_unmap: bool,
    ) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.note_change(offset, len)?;
        let _guard = self.ranges.exclusive(self.aligned(offset, len));
        let backed = self.engine_read().header.backing.is_some();
        let step = self.engine_read().geometry().subcluster_size();
        let end = offset + len;
        let first = offset.next_multiple_of(step).min(end);
        // The last cluster of the disk may be cut off by its end.
        let last = if end == self.size() {
            end
        } else {
            (end - end % step).max(first)
        };
        self.write_zero_data(backing, offset, first)?;
        let mode = if may_unmap {
            ClearMode::ZeroAndFree
        } else {
            ClearMode::Zero
        };
        let mut at = first;
        while at < last {
            if self.external {
                self.zero_data_file(at, last, may_unmap)?;
            }
            match self.run(|engine| engine.clear_range(GuestOffset(at), last - at, mode, backed)) {
                Ok(next) => at = next,
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    let next = (at + ZERO_CHUNK).min(last);
                    self.write_zero_data(backing, at, next)?;
                    at = next;
                }
                Err(error) => return Err(error),
            }
        }
        self.write_zero_data(backing, last.max(first), end)
    }

    /// A raw external data file must read as zeroes, too.
    fn zero_data_file(&self, start: u64, end: u64, may_unmap: bool) -> Result<()> {
        if self.engine_read().header.autoclear & feature::RAW_EXTERNAL == 0 {
            return Ok(());
        }
        self.data_storage()?
            .write_zeroes(start, end - start, may_unmap)
            .map_err(|error| Error::io("write error", error))
    }

    /// Writes zeroes as data where the disk does not read as zeroes yet.
    pub(super) fn write_zero_data(
        &self,
        backing: Option<&dyn BackingDisk>,
        start: u64,
        end: u64,
    ) -> Result<()> {
        let zeroes = vec![0u8; (end - start).min(ZERO_CHUNK) as usize];
        let mut at = start;
        while at < end {
            let pieces = self.find(|engine| engine.map(GuestOffset(at), end - at))?;
            for piece in pieces {
                let empty = match piece.place {
                    Where::Zero(_) => true,
                    Where::Unallocated => {
                        backing.is_none() && self.engine_read().header.backing.is_none()
                    }
                    _ => false,
                };
                let piece_end = piece.guest.0 + piece.len;
                while !empty && at < piece_end {
                    let len = ((piece_end - at) as usize).min(zeroes.len());
                    self.write_allocating(
                        backing,
                        at,
                        &zeroes.get(..len).unwrap_or_default(),
                        len,
                    )?;
                    at += len as u64;
                }
                at = piece_end;
            }
        }
        Ok(())
    }

    pub(crate) fn discard(&self, backed: bool, offset: u64, len: u64) -> Result<()> {
        let size = self.cluster_size;
        let (start, mut end) = (offset.next_multiple_of(size), offset + len);
        if end != self.size() {
            end -= end % size;
        }
        if start >= end {
            return Ok(());
        }
        self.note_change(start, end - start)?;
        let _guard = self.ranges.exclusive(start..end.next_multiple_of(size));
        let backed = backed || self.engine_read().header.backing.is_some();
        let mut at = start;
        while at < end {
            let next = self.run(|engine| {
                engine.clear_range(GuestOffset(at), end - at, ClearMode::Discard, backed)
            })?;
            if self.external {
                self.zero_data_file(at, next.min(end), true)?;
            }
            at = next;
        }
        Ok(())
    }

    pub(crate) fn write_compressed(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let size = self.cluster_size as usize;
        if !offset.is_multiple_of(self.cluster_size)
            || (!buf.len().is_multiple_of(size) && offset + buf.len() as u64 != self.size())
        {
            return Err(Error::invalid(
                "compressed writes must be aligned to clusters",
            ));
        }
        if self.external {
            return Err(Error::unsupported(
                "an image with an external data file cannot have compressed clusters",
            ));
        }
        self.note_change(offset, buf.len() as u64)?;
        for (guest, cluster) in (offset..).step_by(size).zip(buf.chunks(size)) {
            self.write_compressed_cluster(guest, cluster)?;
        }
        Ok(())
    }

    fn write_compressed_cluster(&self, guest: u64, cluster: &[u8]) -> Result<()> {
        let mut padded;
        let whole = if (cluster.len() as u64) < self.cluster_size {
            padded = cluster.to_vec();
            padded.resize(self.cluster_size as usize, 0);
            &padded[..]
        } else {
            cluster
        };
        let packed = compressed::compress(self.compression(), whole)?;
        let _guard = self.ranges.exclusive(guest..guest + self.cluster_size);
        let Some(packed) = packed else {
            return self.write_allocating(None, guest, &cluster, cluster.len());
        };
        let len = packed.len() as u64;
        let host = self.run(|engine| {
            engine.check_usable()?;
            // The table comes first, as QEMU lays it.
            engine.own_l2_table(GuestOffset(guest))?;
            engine.allocate_bytes(len)
        })?;
        let written = self
            .storage
            .write(host.0, &&packed[..], 0, packed.len())
            .map_err(|error| Error::io("write error", error))
            .and_then(|()| self.run(|engine| engine.set_compressed(GuestOffset(guest), host, len)));
        if written.is_err() {
            // The first error is the one to report; what cannot be given back either leaks.
            let _ = self.run(|engine| engine.release_bytes(host, len));
        }
        written
    }
}
