//! What is done to an image as a whole: checks, merged bitmaps, other sizes with space reserved, no backing file any more; and
//! requests by other means, and processes that are killed.

use qcow::{Image, Place, Plan, Preallocation, Repair, Storage};

use crate::memory::Memory;
use crate::mended::is_harmless;
use crate::model::Now;
use crate::program::{Session, Step};

/// The largest disk of which space is reserved, or everything copied.
const LARGEST: u64 = 1 << 20;

impl Session<'_> {
    /// A bitmap gets what another one says, or a range of any kind.
    pub(crate) fn bitmap_merge(&mut self, name: &str, step: Step) {
        let other = ["all", "some", "n0", "n1", "n2"][usize::from(step.len % 5)];
        if step.fill & 8 == 0 {
            let Ok(ranges) = self.image.bitmap_ranges(other) else {
                return;
            };
            if self.image.bitmap_merge(name, ranges).is_ok()
                && let Some(model) = &mut self.model
            {
                model.merged(name, Some(other), None);
            }
            return;
        }
        let size = self.image.virtual_size();
        let (start, len) = (
            u64::from(step.place),
            u64::from(step.len) << (step.fill >> 3),
        );
        let merged = self.image.bitmap_merge(name, [(start, len)]);
        if let (Ok(()), Some(model)) = (merged, &mut self.model) {
            let range = start..start.saturating_add(len).min(size);
            model.merged(name, None, Some(range));
        }
    }

    pub(crate) fn resize_with_space(&mut self, step: Step) {
        let preallocation = match step.fill % 4 {
            0 | 1 => Preallocation::Metadata,
            2 => Preallocation::Falloc,
            _ => Preallocation::Full,
        };
        self.resize_to(u64::from(step.place) % LARGEST / 512 * 512, preallocation);
    }

    /// Checks the image while it is in use. One that was sound is.
    pub(crate) fn check(&self, step: Step) {
        self.check_sound();
        let repair = [Repair::None, Repair::Leaks, Repair::All][usize::from(step.fill % 3)];
        // What a repair makes good is not all damage: where it ends a leak, the flag "only one refers to this" becomes due.
        if repair != Repair::None && self.image.check(repair).is_ok() {
            self.check_sound();
        }
    }

    fn check_sound(&self) {
        // What is half done looks like damage, and is found when the image is opened again.
        if self.host.file.is_limited() {
            return;
        }
        let Ok(found) = self.image.check(Repair::None) else {
            return;
        };
        assert!(
            !self.sound || found.is_sound() || (self.shares && is_harmless(&found)),
            "an image in use is damaged: {:?}",
            found.messages
        );
    }

    /// Applies or deletes one of the snapshots there are, by its id.
    pub(crate) fn snapshot_of_any_name(&mut self, step: Step) {
        let list = self.image.snapshots().unwrap_or_default();
        let index = usize::from(step.len) % list.len().max(1);
        let Some(one) = list.get(index) else {
            return;
        };
        if step.fill & 1 == 0 {
            let _ = self.image.snapshot_apply(&one.id);
            self.reload();
            if let Some(model) = &mut self.model {
                model.bitmaps.clear();
            }
            return;
        }
        let _ = self.image.snapshot_delete(&one.id);
        if let Some(model) = &mut self.model {
            let left = self.image.snapshots().unwrap_or_default();
            (model.snapshots).retain(|name, _| left.iter().any(|one| one.name == *name));
        }
    }

    /// Copies what the backing file shows, and names it no more. What it shows in snapshots is lost.
    pub(crate) fn flatten(mut self) -> Option<Self> {
        let size = self.image.virtual_size();
        if self.image.backing().is_none() || size > LARGEST {
            return Some(self);
        }
        let copied = copy_up(&self.image, size).is_ok();
        if !copied || self.image.change_backing_file(None, None).is_err() {
            return Some(self);
        }
        if let Some(model) = &mut self.model {
            model.snapshots.clear();
        }
        self.reopen()
    }

    /// The image is opened again, and another journal is kept from then on, or none.
    pub(crate) fn keep_journal(self, step: Step) -> Option<Self> {
        let (image, mut left) = self.leave();
        let closed = image.close().is_ok();
        let cut_off = left.host.file.is_spent();
        // Whoever goes on for one that was cut off does so with its journal.
        if closed {
            left.journal = (step.fill & 1 == 0).then(Memory::default);
        }
        (cut_off || closed).then(|| left.enter()).flatten()
    }

    /// The process ends at once, and another one opens the image. What was flushed is there, and with a journal all that was written.
    pub(crate) fn kill(mut self, step: Step) -> Option<Self> {
        let all_there = match step.fill & 3 {
            0 => self.image.secure().is_ok(),
            1 => self.image.flush().is_ok(),
            _ => false,
        };
        // Of one whose changes failed nobody knows what it still did.
        let all_there = all_there && !self.host.file.is_spent();
        let journal = self.journal.take().map(|journal| journal.copy());
        let file = self.host.file.copy();
        let (image, mut left) = self.leave();
        drop(image);
        left.host.file.become_like(&file);
        if let Some(journal) = &journal
            && step.fill & 8 != 0
        {
            left.sound = false;
            left.model = None;
            flip(journal, step);
        }
        left.journal = journal;
        let mut next = left.enter()?;
        if let Some(model) = &mut next.model {
            model.bitmaps.clear();
        }
        if !all_there {
            next.reload();
        }
        Some(next)
    }

    /// Reads, or writes, where the image says that its data is.
    pub(crate) fn by_plan(&mut self, step: Step) {
        if step.fill & 1 == 0 {
            return step.read_by_plan(self.host, &self.image);
        }
        let (offset, len) = step.range(self.image.virtual_size());
        let Ok(Some(plan)) = self.image.plan_write(offset, len as usize) else {
            return;
        };
        let bytes = vec![step.fill; len as usize];
        for part in &plan.parts {
            let Place::File { file, offset } = part.place else {
                return self.reload_after(plan);
            };
            let piece = &bytes[part.at..part.at + part.len];
            let file = self.host.file(file);
            if file.is_none_or(|file| file.write(offset, &piece, 0, part.len).is_err()) {
                return self.reload_after(plan);
            }
        }
        drop(plan);
        self.wrote(offset..offset + len, true, &Now::Bytes(&bytes));
    }

    fn reload_after(&mut self, plan: Plan) {
        drop(plan);
        self.reload();
    }
}

/// Writes all that is not in the image itself.
fn copy_up(image: &Image, size: u64) -> qcow::Result<()> {
    let mut at = 0;
    while at < size {
        let extent = image.map_layer(at, (size - at).min(64 << 10))?;
        if !extent.present {
            let mut bytes = vec![0; extent.length as usize];
            image.read_at(at, &mut bytes)?;
            image.write_at(at, &bytes)?;
        }
        at += extent.length;
    }
    Ok(())
}

/// Whoever else can write to the journal changes a bit of it.
fn flip(journal: &Memory, step: Step) {
    let len = journal.len().unwrap_or(0).max(1);
    let at = u64::from(step.place) % len;
    let mut byte = [0];
    let _ = journal.read(at, &mut &mut byte[..], 0, 1);
    byte[0] ^= 1 << (step.len % 8);
    let _ = journal.write(at, &&byte[..], 0, 1);
}
