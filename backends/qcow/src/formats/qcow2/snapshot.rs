//! Internal snapshots: create, apply, delete.
//!
//! All tables are replaced at once: see [`crate::formats::qcow2::rewrite::NewTables`].

use std::sync::PoisonError;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, ErrorKind, Result};
use crate::formats::backing_disk::BackingDisk;
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::commit::ExclusiveEngine;
use crate::formats::qcow2::engine::Engine;
use crate::formats::qcow2::journal::Freed;
use crate::formats::qcow2::layout::address::{ClusterIndex, HostOffset};
use crate::formats::qcow2::layout::bitmap::BitmapsExtension;
use crate::formats::qcow2::layout::feature;
use crate::formats::qcow2::layout::geometry::{MAX_L1_BYTES, MAX_SNAPSHOTS};
use crate::formats::qcow2::layout::header::Header;
use crate::formats::qcow2::layout::snapshot_table::{
    MAX_TABLE_BYTES, Reading, Snapshot, SnapshotTable,
};
use crate::formats::qcow2::rewrite::{NewTables, Replaced};
use crate::formats::qcow2::{Qcow2, find_snapshot};
use crate::options::Preallocation;
use crate::report::{Repair, SnapshotInfo};

impl Qcow2 {
    fn check_snapshots_possible(&self, engine: &Engine) -> Result<()> {
        engine.check_usable()?;
        if self.external {
            return Err(Error::unsupported(
                "an image with an external data file cannot have snapshots",
            ));
        }
        Ok(())
    }

    /// Makes the tables of the image others, all at once. The caller has the whole disk for himself.
    pub(super) fn replace_tables(
        &self,
        mut engine: ExclusiveEngine<'_>,
        tables: NewTables,
    ) -> Result<()> {
        while !engine.is_clean() {
            self.commit(&mut engine, true)?;
        }
        self.sync(&mut engine)?;
        let size = tables.size;
        let check = Check::new(&*self.storage, &engine.header, Repair::None)?;
        let mut lost = false;
        let replaced = check
            .replace_tables(tables, &mut lost)
            .inspect_err(|error| {
                if error.kind() == ErrorKind::Corrupt {
                    self.signal_corruption(&mut engine, error);
                } else if lost {
                    engine.stop(error.to_string());
                }
            });
        let Replaced {
            header,
            snapshots,
            freed,
        } = replaced?;
        engine.replace_tables(header);
        self.size.store(size, std::sync::atomic::Ordering::Release);
        if let Some(snapshots) = snapshots {
            *self.snapshot_list() = snapshots;
        }
        self.give_back(&mut engine, &freed);
        drop(engine);
        self.register_all_metadata()
    }

    /// Keeps the present state of the disk under `name`.
    pub(crate) fn snapshot_create(&self, name: &str) -> Result<()> {
        if name.len() > usize::from(u16::MAX) {
            return Err(Error::invalid("the name of the snapshot is too long"));
        }
        let _guard = self.ranges.exclusive(0..u64::MAX);
        let mut engine = self.engine_exclusive();
        self.check_snapshots_possible(&engine)?;
        let mut snapshots = self.snapshot_list().clone();
        if snapshots.len() >= MAX_SNAPSHOTS as usize {
            return Err(Error::too_large(format!(
                "the image has {MAX_SNAPSHOTS} snapshots already"
            )));
        }
        let l1 = self.run_locked(&mut engine, Engine::l1_words)?;
        let size = engine.header.size;
        snapshots
            .iter_mut()
            .for_each(|snapshot| _ = snapshot.info.disk_size.get_or_insert(size));
        snapshots.push(new_snapshot(name, &snapshots, l1.len() as u32, size));
        let tables = NewTables {
            size,
            snapshots: Some(snapshots),
            fresh_l1: Some(l1.clone()),
            l1,
        };
        self.replace_tables(engine, tables)
    }

    /// Bitmaps follow the size of the disk, as they do when it changes by itself.
    fn follow_snapshot_size(
        &self,
        backing: Option<&dyn BackingDisk>,
        id_or_name: &str,
    ) -> Result<()> {
        let size = find_snapshot(&self.snapshot_list(), id_or_name)?
            .info
            .disk_size;
        let has_bitmaps = BitmapsExtension::of(&self.engine_exclusive().header)?.is_some();
        match size {
            Some(size) if has_bitmaps && size != self.size() => {
                self.resize(backing, size, Preallocation::Off)
            }
            _ => Ok(()),
        }
    }

    /// Makes the disk what it was in a snapshot.
    pub(crate) fn snapshot_apply(
        &self,
        backing: Option<&dyn BackingDisk>,
        id_or_name: &str,
    ) -> Result<()> {
        self.follow_snapshot_size(backing, id_or_name)?;
        self.note_change(0, self.size())?;
        let _guard = self.ranges.exclusive(0..u64::MAX);
        let mut engine = self.engine_exclusive();
        self.check_snapshots_possible(&engine)?;
        let snapshot = find_snapshot(&self.snapshot_list(), id_or_name)?.clone();
        snapshot.check(engine.geometry())?;
        let size = snapshot.info.disk_size.unwrap_or(engine.header.size);
        let entries = engine
            .geometry()
            .l1_entries_for(size)
            .max(u64::from(snapshot.l1_size))
            .max(1);
        if entries > MAX_L1_BYTES / 8 {
            return Err(Error::corrupt(format!(
                "the disk of snapshot {id_or_name} is larger than an L1 table can describe"
            )));
        }
        let mut l1 = self.run_locked(&mut engine, |engine| {
            engine.snapshot_l1(snapshot.l1_offset, u64::from(snapshot.l1_size))
        })?;
        l1.resize(entries as usize, 0);
        let tables = NewTables {
            l1,
            size,
            snapshots: None,
            fresh_l1: None,
        };
        self.replace_tables(engine, tables)
    }

    /// Forgets a snapshot.
    pub(crate) fn snapshot_delete(&self, id_or_name: &str) -> Result<()> {
        let _guard = self.ranges.exclusive(0..u64::MAX);
        let mut engine = self.engine_exclusive();
        self.check_snapshots_possible(&engine)?;
        let mut snapshots = self.snapshot_list().clone();
        let snapshot = find_snapshot(&snapshots, id_or_name)?.clone();
        snapshot.check(engine.geometry())?;
        snapshots.retain(|other| other.info.id != snapshot.info.id);
        let size = engine.header.size;
        snapshots
            .iter_mut()
            .for_each(|snapshot| _ = snapshot.info.disk_size.get_or_insert(size));
        let tables = NewTables {
            l1: self.run_locked(&mut engine, Engine::l1_words)?,
            size,
            snapshots: Some(snapshots),
            fresh_l1: None,
        };
        self.replace_tables(engine, tables)
    }

    pub(super) fn snapshot_list(&self) -> std::sync::MutexGuard<'_, Vec<Snapshot>> {
        self.snapshots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` with the dirty bit set. If it fails half-way, the bit stays, and nothing more is written.
    pub(super) fn guarded(
        &self,
        engine: &mut Engine,
        work: impl FnOnce(&mut Engine) -> Result<()>,
    ) -> Result<()> {
        let was_dirty = engine.header.incompatible & feature::DIRTY != 0;
        let guards = engine.header.version >= 3 && !was_dirty;
        self.commit(engine, true)?;
        if guards {
            let mut header = engine.header.clone();
            header.incompatible |= feature::DIRTY;
            self.update_header(engine, header)?;
        }
        if let Err(error) = work(engine) {
            engine.stop(format!("a change was left half-way: {error}"));
            return Err(error);
        }
        // What was freed meanwhile lowers refcounts: those are written before the bit goes.
        while !engine.is_clean() {
            self.commit(engine, true)?;
        }
        if guards {
            let mut header = engine.header.clone();
            header.incompatible &= !feature::DIRTY;
            self.update_header(engine, header)?;
        }
        Ok(())
    }

    pub(super) fn free_tree(&self, engine: &mut Engine, table: HostOffset) -> Result<()> {
        let free = self.run_locked(engine, |engine| engine.dereference_tree(table))?;
        self.give_back(engine, &free);
        Ok(())
    }

    pub(super) fn give_back(&self, engine: &mut Engine, free: &[Freed]) {
        for free in free {
            engine.forget(*free);
        }
        self.forget_decompressed();
        if self.discard == crate::options::Discard::Unmap {
            for free in free {
                // The space is free in the image whether the host takes it back or not.
                let _ = self
                    .storage
                    .discard(free.host.0, free.clusters * self.cluster_size);
            }
        }
    }

    /// Writes the snapshot table elsewhere and switches to it.
    pub(super) fn write_snapshot_table(
        &self,
        engine: &mut Engine,
        snapshots: Vec<Snapshot>,
        header: Header,
    ) -> Result<()> {
        let old = (
            HostOffset(engine.header.snapshots_offset),
            self.snapshot_table_clusters(engine)?,
        );
        self.write_table_beside(engine, old, snapshots, header)
    }

    /// Replaces a snapshot table of `bytes` bytes, whose entries could not all be kept as they were. All counts are
    /// right.
    pub(super) fn replace_snapshot_table(
        &self,
        engine: &mut Engine,
        snapshots: Vec<Snapshot>,
        bytes: u64,
    ) -> Result<()> {
        let clusters = engine.geometry().clusters_for(bytes);
        let host = HostOffset(engine.header.snapshots_offset);
        let header = engine.header.clone();
        self.write_table_beside(engine, (host, 0), snapshots, header)?;
        let first = engine.geometry().cluster_of(host).0;
        for cluster in (first..first + clusters).map(ClusterIndex) {
            // A table that reached beyond the end of the file was not counted.
            self.run_locked(engine, |engine| match engine.refcount(cluster)? {
                0 => Ok(0),
                _ => engine.dereference(cluster),
            })?;
        }
        while !engine.is_clean() {
            self.commit(engine, true)?;
        }
        Ok(())
    }

    fn write_table_beside(
        &self,
        engine: &mut Engine,
        old: (HostOffset, u64),
        mut snapshots: Vec<Snapshot>,
        mut header: Header,
    ) -> Result<()> {
        let mut bytes = Vec::new();
        for snapshot in &mut snapshots {
            snapshot.info.disk_size.get_or_insert(header.size);
            snapshot.encode(&mut bytes, header.size);
        }
        if bytes.len() as u64 > MAX_TABLE_BYTES {
            return Err(Error::too_large("the snapshot table would be too large"));
        }
        let clusters = engine.geometry().clusters_for(bytes.len() as u64);
        header.snapshots = snapshots.len() as u32;
        header.snapshots_offset = 0;
        if clusters > 0 {
            let host = self.run_locked(engine, |engine| engine.allocate_exactly(clusters))?;
            self.commit(engine, true)?;
            bytes.resize((clusters * self.cluster_size) as usize, 0);
            self.write_file(host.0, &bytes)?;
            header.snapshots_offset = host.0;
            engine.register_metadata("snapshot table", host, clusters)?;
        }
        header = Header {
            snapshots: header.snapshots,
            snapshots_offset: header.snapshots_offset,
            ..engine.header.clone()
        };
        self.update_header(engine, header)?;
        *self.snapshot_list() = snapshots;
        if old.1 > 0 {
            let free = self.run_locked(engine, |engine| engine.dereference_run(old.0, old.1))?;
            self.give_back(engine, &free);
        }
        Ok(())
    }

    fn snapshot_table_clusters(&self, engine: &Engine) -> Result<u64> {
        let table = SnapshotTable::read(&*self.storage, &engine.header, Reading::Strict)?;
        Ok(engine.geometry().clusters_for(table.bytes))
    }
}

fn new_snapshot(name: &str, others: &[Snapshot], l1_size: u32, disk_size: u64) -> Snapshot {
    let id = others
        .iter()
        .filter_map(|other| other.info.id.parse::<u64>().ok())
        .max()
        .unwrap_or(0)
        .saturating_add(1)
        .to_string();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Snapshot {
        l1_offset: 0,
        l1_size,
        info: SnapshotInfo {
            id: id.clone(),
            name: name.to_owned(),
            vm_state_size: 0,
            date_sec: now.as_secs() as u32,
            date_nsec: now.subsec_nanos(),
            vm_clock_nsec: 0,
            icount: Some(0),
            disk_size: Some(disk_size),
        },
        unknown_extra: Vec::new(),
        extra_len: 24,
        names: (id.into_bytes(), name.as_bytes().to_vec()),
    }
}
