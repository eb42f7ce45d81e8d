//! Repairs L2 entries that are invalid. QEMU counts and keeps them, so that its repair never succeeds.

use crate::error::Result;
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::check::walk::Walk;
use crate::formats::qcow2::layout::address::HostOffset;
use crate::formats::qcow2::layout::geometry::OFFSET_MASK;
use crate::formats::qcow2::layout::l2::L2Entry;

/// An entry with reserved bits, or one that leads into the middle of a cluster.
#[derive(Debug)]
pub(in crate::formats::qcow2) struct Damaged {
    table: u64,
    index: u64,
    entry: L2Entry,
    /// How often it was counted as a finding.
    uses: u64,
}

/// At most this many entries are repaired at a time.
const MAX_MENDED: usize = 100_000;
/// The upper half of a subcluster bitmap says which read as zeroes, the lower one which hold data.
const ZEROES: u32 = 32;
const ALLOCATED: u64 = 0xffff_ffff;

impl Check<'_> {
    /// Remembers an entry that can be repaired, if that is wanted; returns whether it did. An entry that leads nowhere
    /// is not counted then.
    pub(in crate::formats::qcow2) fn note_damaged(
        &mut self,
        walk: &Walk,
        index: u64,
        entry: L2Entry,
    ) -> bool {
        let noted = walk.fix && self.gives_up_lost && self.damaged.len() < MAX_MENDED;
        if noted {
            self.damaged.push(Damaged {
                table: walk.offset,
                index,
                entry,
                uses: walk.uses,
            });
        }
        noted
    }

    /// Repairs the entries that were found while everything was counted.
    pub(in crate::formats::qcow2) fn mend_entries(&mut self) -> Result<()> {
        let noted = std::mem::take(&mut self.damaged);
        if noted.is_empty() {
            return Ok(());
        }
        for damaged in noted {
            match self.mended(&damaged) {
                Some(entry) => self.mend(&damaged, entry)?,
                None if self.leads_nowhere(damaged.entry) => {
                    let (offset, size) = (
                        damaged.entry.word & OFFSET_MASK,
                        self.geometry.cluster_size(),
                    );
                    self.count(offset, size, damaged.uses);
                }
                None => {}
            }
        }
        // On the medium before refcounts of what they led to go down.
        self.sync()
    }

    fn leads_nowhere(&self, entry: L2Entry) -> bool {
        let offset = entry.word & OFFSET_MASK;
        !offset.is_multiple_of(self.geometry.cluster_size())
    }

    /// What takes the place of the entry: the same without reserved bits, or zeroes where the data cannot be found any
    /// more. `None` if the table may be something else, such as data that an L1 entry leads to by mistake, or if the
    /// backing file would show instead.
    fn mended(&self, damaged: &Damaged) -> Option<L2Entry> {
        let size = self.geometry.cluster_size();
        let uses = self
            .walked
            .get(&damaged.table)
            .map(|(again, _)| 1 + again)?;
        let cluster = self.geometry.cluster_of(HostOffset(damaged.table)).0;
        let place = damaged.table + damaged.index * self.geometry.l2_entry_size();
        if !damaged.table.is_multiple_of(size)
            || self.counts.get(cluster) != uses
            || self.holds_other_metadata(place, self.geometry.l2_entry_size())
        {
            return None;
        }
        let entry = damaged.entry.without_reserved();
        if !self.leads_nowhere(entry) {
            return Some(entry);
        }
        match (self.geometry.extended_l2, self.geometry.version) {
            (true, _) => Some(L2Entry {
                word: 0,
                bitmap: (entry.bitmap | (entry.bitmap & ALLOCATED) << ZEROES) & !ALLOCATED,
            }),
            (false, 3..) => Some(L2Entry::zero(&self.geometry)),
            (false, _) => self.header.backing.is_none().then(L2Entry::default),
        }
    }

    fn mend(&mut self, damaged: &Damaged, entry: L2Entry) -> Result<()> {
        let size = self.geometry.l2_entry_size();
        let mut bytes = [entry.word, entry.bitmap].map(u64::to_be_bytes).concat();
        bytes.truncate(size as usize);
        self.write(damaged.table + damaged.index * size, &bytes)?;
        let lost = match self.leads_nowhere(damaged.entry) {
            true => "its data is lost and reads as zeroes",
            false => "reserved bits are cleared",
        };
        self.report(format!(
            "Repairing L2 entry {} of the table at {:#x}: {lost}: {:#x}",
            damaged.index, damaged.table, damaged.entry.word
        ));
        self.result.corruptions -= damaged.uses;
        self.result.corruptions_fixed += damaged.uses;
        Ok(())
    }
}
