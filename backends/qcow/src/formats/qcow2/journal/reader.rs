//! Reads the journal of a process that was killed: all of it, or none.

use std::collections::BTreeMap;

use crate::formats::qcow2::journal::Freed;
use crate::formats::qcow2::journal::log::{
    Change, NEEDED_AT, PART, PARTS, RECORD, checksum, without_first,
};

/// The journal of a process that was killed.
#[derive(Debug, Default)]
pub(crate) struct JournalContents {
    /// In the order in which they were made.
    pub(crate) changes: Vec<Change>,
    pub(crate) owed: Vec<Freed>,
    /// Not all changes were recorded: the file may have later values than the records.
    pub(crate) has_gap: bool,
    pub(super) parts: [Option<u64>; PARTS],
    pub(super) last_epoch: u64,
    /// The number of the next group.
    pub(super) groups: u64,
}

impl JournalContents {
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.owed.is_empty() && !self.has_gap
    }

    /// How many groups the journal has, by the number of the next one.
    pub(crate) fn groups(&self) -> u32 {
        self.groups as u32
    }

    fn add(&mut self, change: Change, owed: &mut BTreeMap<u64, Option<Freed>>, cluster_size: u64) {
        match change {
            _ if self.has_gap => {}
            Change::Gap => self.has_gap = true,
            Change::Owed(run) => {
                owed.entry(run.number).or_insert(Some(run));
            }
            Change::Settled { number, clusters } => {
                // Clusters that are settled stay so, even if the run is recorded as owed once more.
                let run = owed.entry(number).or_insert(None);
                *run = run.and_then(|run| without_first(run, clusters, cluster_size));
            }
            change => self.changes.push(change),
        }
    }
}

/// A group as it is in the file.
struct Group {
    epoch: u64,
    base: u64,
    number: u32,
    /// How many groups before it are needed with it.
    needed: u32,
    /// `None` if they cannot be decoded.
    changes: Option<Vec<Change>>,
}

impl Group {
    /// The group at the beginning of `words`, and the words behind it; `None` if there is no valid group.
    fn read(session: u64, words: &[u64]) -> Option<(Self, &[u64])> {
        let (&[epoch, base, place, sum], rest) = words.split_first_chunk::<4>()?;
        let count = place & ((1 << NEEDED_AT) - 1);
        let (records, rest) = rest.split_at_checked(4 * usize::try_from(count).ok()?)?;
        let head = [epoch, base, place, 0];
        if epoch == 0 || sum != checksum(session, head.iter().chain(records)) {
            return None;
        }
        let (records, _) = records.as_chunks::<4>();
        let changes = records.iter().map(|record| Change::decode(*record));
        let group = Self {
            epoch,
            base,
            number: (place >> 32) as u32,
            needed: (place as u32) >> NEEDED_AT,
            changes: changes.collect(),
        };
        Some((group, rest))
    }
}

/// The content of one part of the file.
#[derive(Default)]
struct Part {
    /// The valid groups at its beginning, in order.
    groups: Vec<Group>,
    /// Valid groups behind those: of the part's former epoch or, where a group is damaged, of the same.
    others: Vec<Group>,
    /// The groups are followed by something that neither this program nor a kill leaves there.
    ends_in_damage: bool,
}

/// A kill interrupts a write only between two pages of the host's cache.
const PAGE: usize = 4096;

impl Part {
    fn read(session: u64, part: &[u64]) -> Self {
        let mut read = Self::default();
        let mut rest = part;
        while let Some((group, after)) = Group::read(session, rest) {
            let follows = read.groups.last().is_none_or(|last| {
                (group.epoch, group.number) == (last.epoch, last.number.wrapping_add(1))
            });
            if !follows {
                break;
            }
            read.groups.push(group);
            rest = after;
        }
        if let Some(last) = read.groups.last() {
            read.ends_in_damage = is_damage(last, rest, 8 * (part.len() - rest.len()));
        }
        while let Some(&epoch) = rest.first() {
            let group = (epoch != 0).then(|| Group::read(session, rest)).flatten();
            rest = match group {
                Some((group, after)) => {
                    read.others.push(group);
                    after
                }
                None => rest.get(RECORD / 8..).unwrap_or_default(),
            };
        }
        read
    }

    fn epoch(&self) -> u64 {
        self.groups.first().map_or(0, |first| first.epoch)
    }
}

/// Whether the words behind the last group, at offset `at` of its part, are neither zeroes nor the beginning of the
/// next group.
fn is_damage(last: &Group, rest: &[u64], at: usize) -> bool {
    let Some(&[epoch, base, place, sum]) = rest.first_chunk::<4>() else {
        return false;
    };
    // If the write was interrupted before the zeroes, the page still has its former content.
    if [epoch, base, place, sum] == [0; 4] || at.is_multiple_of(PAGE) {
        return false;
    }
    let number = (place >> 32) as u32;
    let len = RECORD * (1 + (place & ((1 << NEEDED_AT) - 1)) as usize);
    let is_next = (epoch, number) == (last.epoch, last.number.wrapping_add(1));
    !is_next || at / PAGE == (at + len - 1) / PAGE
}

/// Whether these are all the groups that the last of them needs.
fn is_whole(groups: &[&Group]) -> bool {
    let Some(last) = groups.last() else {
        // A journal has a group from the beginning on.
        return false;
    };
    let first = last.number.wrapping_sub(last.needed);
    let mut numbers = (0u32..).map(|at| first.wrapping_add(at));
    let follow = groups.iter().zip(&mut numbers);
    last.needed as usize + 1 == groups.len()
        && follow
            .into_iter()
            .all(|(group, number)| group.number == number)
}

/// Reads all parts of a journal. `None` if something is missing or contradictory.
pub(crate) fn read(session: u64, parts: &[u64], cluster_size: u64) -> Option<JournalContents> {
    let parts = parts.chunks(PART / 8).take(PARTS);
    let parts = parts.map(|part| Part::read(session, part));
    let mut all: Vec<(usize, Part)> = parts.enumerate().collect();
    let every = || {
        let parts = all.iter().map(|(_, part)| part);
        parts.flat_map(|part| part.groups.iter().chain(&part.others))
    };
    let base = every().map(|group| group.base).max()?;
    let last_epoch = every().map(|group| group.epoch).max()?;
    let is_needed = |group: &Group| group.epoch >= base;
    if all
        .iter()
        .any(|(_, part)| part.others.iter().any(is_needed))
    {
        return None;
    }
    all.retain(|(_, part)| part.groups.first().is_some_and(is_needed));
    all.sort_by_key(|(_, part)| part.epoch());
    // Where earlier parts end too soon, the numbers of the groups show it.
    if all.last().is_some_and(|(_, part)| part.ends_in_damage) {
        return None;
    }
    let needed: Vec<&Group> = all.iter().flat_map(|(_, part)| &part.groups).collect();
    let last = needed.last().filter(|_| is_whole(&needed))?;
    let mut left = JournalContents {
        last_epoch,
        groups: u64::from(last.number) + 1,
        ..JournalContents::default()
    };
    for (index, part) in &all {
        *left.parts.get_mut(*index)? = Some(part.epoch());
    }
    let mut owed = BTreeMap::new();
    for group in needed {
        for change in group.changes.as_ref()? {
            left.add(*change, &mut owed, cluster_size);
        }
    }
    left.owed = owed.into_values().flatten().collect();
    // The process that takes over needs a free part.
    left.parts.contains(&None).then_some(left)
}
