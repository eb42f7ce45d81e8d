//! The layout of a header in the first cluster, and how a new header replaces the old one so that after a power cut the
//! image has one of them, complete.
//!
//! This relies on a sector being written as a whole or not at all. Parts of a header that do not fit into the first
//! sector (a long name, long extensions) are written to a place that the old header does not use, and synced before the
//! first sector, which refers to them. The list of extensions has no pointers. To make it continue elsewhere, the table
//! of feature names, which no program needs, is made so long that it covers the gap.
//!
//! Where there is room, the header ends up in QEMU's layout: all parts adjacent, in QEMU's order. If the old header
//! occupies that place, the new one is first written to a third place, and then to its own. Images with bitmaps are an
//! exception: in QEMU's layout the bitmaps extension, which changes often, would cross the end of the first sector, so
//! it is kept within that sector.
//!
//! With small clusters, or long unknown extensions, the first cluster has no room for two headers. Then the new header
//! overwrites the old one, as QEMU always does. That is the one change that a power cut can leave half done.

use crate::error::{Error, Result};
use crate::formats::qcow2::journal::progress::PROGRESS;
use crate::formats::qcow2::layout::big_endian::{be32, be64};
use crate::formats::qcow2::layout::extension::{Extension, kind};
use crate::formats::qcow2::layout::feature;
use crate::formats::qcow2::layout::header::{Header, SECTOR};
use crate::storage::Storage;

/// How much of the first cluster is read at first. It nearly always contains the whole header.
const USUAL: usize = 8 << 10;
/// Length of the head of an extension, and of the mark that ends the list.
const HEAD: usize = 8;

/// Replaces the header in the file by `header`. Calls `sync` between the steps, but not after the last one, which
/// writes the first sector.
pub(crate) fn write(
    storage: &dyn Storage,
    header: &Header,
    sync: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let cluster = 1usize << header.cluster_bits;
    let mut old = read(storage, cluster.min(USUAL))?;
    let live = match Live::of(&old) {
        Some(live) => live,
        None => {
            old = read(storage, cluster)?;
            Live::of(&old).ok_or_else(damaged)?
        }
    };
    Placed::over(header, &old, &live)?.write(storage, sync)
}

/// Whether the first cluster has room for two such headers, so that one can safely replace the other.
pub(crate) fn fits_twice(header: &Header) -> bool {
    let room = room(header);
    Parts::of(header).is_some_and(|parts| {
        Placed::in_first_sector(&parts).is_some() || SECTOR + 2 * parts.beyond().len() <= room
    })
}

/// Whether the header in the file leaves the end of the first cluster free for the journal's progress.
pub(crate) fn leaves_end(storage: &dyn Storage, header: &Header) -> Result<bool> {
    let cluster = 1usize << header.cluster_bits;
    let live = Live::of(&read(storage, cluster)?).ok_or_else(damaged)?;
    Ok(live.leaves(cluster - PROGRESS, cluster))
}

/// How many bytes of the first cluster a header may use: with a journal, all except the journal's progress.
fn room(header: &Header) -> usize {
    let cluster = 1usize << header.cluster_bits;
    match header.extension(kind::JOURNAL) {
        Some(_) => cluster - PROGRESS,
        None => cluster,
    }
}

/// How many bytes of the first sector it may use.
fn first_room(header: &Header) -> usize {
    SECTOR.min(room(header))
}

fn damaged() -> Error {
    Error::corrupt("the header is damaged")
}

/// Writes the header of a new image.
pub(crate) fn write_new(
    storage: &dyn Storage,
    header: &Header,
    sync: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    Placed::new(header)?.write(storage, sync)
}

fn read(storage: &dyn Storage, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    storage
        .read(0, &mut &mut bytes[..], 0, len)
        .map_err(|error| Error::io("cannot read the header", error))?;
    Ok(bytes)
}

/// The range behind the first sector that the header in the file uses.
#[derive(Debug, Default)]
struct Live {
    start: usize,
    end: usize,
    /// The offsets of the extensions and of the name.
    begins: Vec<usize>,
}

impl Live {
    /// From the header's first bytes; `None` if they do not contain the whole header.
    fn of(bytes: &[u8]) -> Option<Self> {
        let mut live = Self {
            start: usize::MAX,
            ..Self::default()
        };
        let length = match be32(bytes, 4) {
            2 => 72,
            _ => be32(bytes, 100) as usize,
        };
        let (name, name_len) = (be64(bytes, 8), be32(bytes, 16) as usize);
        let name = usize::try_from(name).ok()?;
        let end = if name == 0 { bytes.len() } else { name };
        let mut at = length;
        while at + HEAD <= end {
            let (kind, len) = (be32(bytes, at), be32(bytes, at + 4) as usize);
            if kind == kind::END {
                live.add(at, HEAD);
                break;
            }
            let whole = HEAD.checked_add(len)?.checked_next_multiple_of(HEAD)?;
            if kind != kind::FEATURE_NAMES {
                live.add(at, whole);
            }
            at = at.checked_add(whole)?;
        }
        if name != 0 {
            live.add(name, name_len);
        }
        live.end = live.end.max(live.start.min(live.end));
        (at <= bytes.len() && live.end <= bytes.len()).then_some(live)
    }

    fn add(&mut self, at: usize, len: usize) {
        self.begins.push(at);
        let end = at.saturating_add(len);
        if end > SECTOR {
            self.start = self.start.min(at.max(SECTOR));
            self.end = self.end.max(end);
        }
    }

    fn leaves(&self, at: usize, end: usize) -> bool {
        end <= self.start || at >= self.end
    }
}

/// A header, divided into the part in the first sector and the part behind it.
struct Parts<'a> {
    header: &'a Header,
    near: Vec<u8>,
    /// Extensions behind the first sector, with the mark that ends the list. Empty if all are in the first sector.
    far: Vec<u8>,
    name: &'a str,
}

impl<'a> Parts<'a> {
    /// Divides a header. If not all extensions fit into the first sector, only those that change stay there. `None` if
    /// these do not fit either.
    fn of(header: &'a Header) -> Option<Self> {
        let name = header.backing.as_deref().unwrap_or_default();
        let encoded = |of_near: bool| {
            let mut out = Vec::new();
            let changes = |extension: &&Extension| {
                matches!(extension.kind, kind::BACKING_FORMAT | kind::BITMAPS) == of_near
            };
            in_order(header)
                .into_iter()
                .filter(changes)
                .for_each(|extension| extension.encode(&mut out));
            out
        };
        let (mut near, mut far) = (encoded(true), encoded(false));
        let length = header.fields_len();
        let room = first_room(header);
        if length + near.len() + far.len() + HEAD <= room {
            near.append(&mut far);
        } else {
            far.extend_from_slice(&[0; HEAD]);
        }
        (length + near.len() + HEAD <= room).then_some(Self {
            header,
            near,
            far,
            name,
        })
    }

    /// The bytes behind the first sector.
    fn beyond(&self) -> Vec<u8> {
        [&self.far, self.name.as_bytes()].concat()
    }

    /// The first sector of a header whose other part is at `beyond`; `name` is the offset of the name.
    fn first_sector(&self, beyond: usize, name: usize) -> Vec<u8> {
        let mut out = self.header.encode_fields(name as u64);
        out.extend_from_slice(&self.near);
        let whole_list = self.far.is_empty();
        let end_mark = if whole_list { HEAD } else { 0 };
        let end = beyond.min(SECTOR).saturating_sub(end_mark);
        let names = match has_names(self.header) {
            true => feature::name_table(end.saturating_sub(out.len() + HEAD)),
            false => Vec::new(),
        };
        if !whole_list || !names.is_empty() {
            let len = match whole_list {
                true => names.len(),
                false => beyond - out.len() - HEAD,
            };
            out.extend_from_slice(&kind::FEATURE_NAMES.to_be_bytes());
            out.extend_from_slice(&(len as u32).to_be_bytes());
            out.extend_from_slice(&names);
        }
        out
    }
}

/// Whether the image has a table of feature names. As in QEMU, small clusters have no room for one.
fn has_names(header: &Header) -> bool {
    header.version >= 3 && header.cluster_bits > 12
}

/// The extensions in the order in which they are written, without the table of feature names.
fn in_order(header: &Header) -> Vec<&Extension> {
    let order = |kind: u32| match kind {
        kind::BACKING_FORMAT => 0,
        kind::BITMAPS => 1,
        kind::DATA_FILE => 2,
        _ => 3,
    };
    let mut extensions: Vec<&Extension> = header
        .extensions
        .iter()
        .filter(|extension| extension.kind != kind::FEATURE_NAMES)
        .collect();
    extensions.sort_by_key(|extension| order(extension.kind));
    extensions
}

/// The header in QEMU's layout; `None` if there is no room for it.
fn as_usual(header: &Header) -> Option<Vec<u8>> {
    if header.extension(kind::BITMAPS).is_some() {
        return None;
    }
    let mut list = Vec::new();
    let (before, after): (Vec<_>, Vec<_>) = in_order(header)
        .into_iter()
        .partition(|extension| matches!(extension.kind, kind::BACKING_FORMAT | kind::DATA_FILE));
    before
        .iter()
        .for_each(|extension| extension.encode(&mut list));
    if has_names(header) {
        let names = Extension {
            kind: kind::FEATURE_NAMES,
            data: feature::name_table(usize::MAX),
        };
        names.encode(&mut list);
    }
    after
        .iter()
        .for_each(|extension| extension.encode(&mut list));
    list.extend_from_slice(&[0; HEAD]);
    let out = one_after_the_other(header, &list);
    (out.len() <= room(header)).then_some(out)
}

/// The fields, the whole list of extensions, and the name, padded to at least the usable part of the first sector.
fn one_after_the_other(header: &Header, list: &[u8]) -> Vec<u8> {
    let name = header.backing.as_deref().unwrap_or_default();
    let place = header.encode_fields(0).len() + list.len();
    let mut out = header.encode_fields(if name.is_empty() { 0 } else { place as u64 });
    out.extend_from_slice(list);
    out.extend_from_slice(name.as_bytes());
    out.resize(out.len().max(first_room(header)), 0);
    out
}

/// The writes that place a header: offset and bytes, in order, with a sync before each one but the first.
struct Placed {
    steps: Vec<(usize, Vec<u8>)>,
}

impl Placed {
    fn over(header: &Header, old: &[u8], live: &Live) -> Result<Self> {
        if let Some(usual) = as_usual(header)
            && let Some(placed) = Self::usual_over(header, &usual, old, live)
        {
            return Ok(placed);
        }
        if let Some(parts) = Parts::of(header) {
            let beyond = parts.beyond();
            let is_there = |at: &&usize| {
                **at >= SECTOR && old.get(**at..**at + beyond.len()) == Some(&beyond[..])
            };
            if let Some(at) = live
                .begins
                .iter()
                .find(is_there)
                .filter(|_| !beyond.is_empty())
            {
                return Ok(Self::beyond(&parts, *at, None));
            }
            let whole = Self::in_first_sector(&parts);
            if let Some(placed) = whole.or_else(|| Self::beside(&parts, live)) {
                return Ok(placed);
            }
        }
        Self::in_one_piece(header)
    }

    /// Writes the header in QEMU's layout. If the old header uses that place (`live`), another place comes first.
    fn usual_over(header: &Header, usual: &[u8], old: &[u8], live: &Live) -> Option<Self> {
        let (first, beyond) = usual.split_at_checked(SECTOR)?;
        let first = (0, first.to_vec());
        if old.get(SECTOR..usual.len()) == Some(beyond) {
            return Some(Self { steps: vec![first] });
        }
        let last = [(SECTOR, beyond.to_vec()), first];
        if live.leaves(SECTOR, usual.len()) {
            return Some(Self {
                steps: last.to_vec(),
            });
        }
        let parts = Parts::of(header)?;
        let in_the_way = Live {
            start: SECTOR,
            end: live.end.max(usual.len()),
            begins: Vec::new(),
        };
        let mut placed =
            Self::in_first_sector(&parts).or_else(|| Self::beside(&parts, &in_the_way))?;
        placed.steps.extend(last);
        Some(placed)
    }

    /// For a new image. Where QEMU's layout is not possible, the name is placed behind the first sector, which leaves
    /// room there.
    fn new(header: &Header) -> Result<Self> {
        if let Some(usual) = as_usual(header) {
            return Ok(Self {
                steps: vec![(0, usual)],
            });
        }
        let nothing = Live::default();
        let placed = Parts::of(header).and_then(|parts| {
            Self::beside(&parts, &nothing).or_else(|| Self::in_first_sector(&parts))
        });
        placed.map_or_else(|| Self::in_one_piece(header), Ok)
    }

    fn in_first_sector(parts: &Parts<'_>) -> Option<Self> {
        let len = parts.header.fields_len() + parts.near.len() + HEAD;
        let room = first_room(parts.header);
        if !parts.far.is_empty() || len + parts.name.len() > room {
            return None;
        }
        let name = room - parts.name.len();
        let place = if parts.name.is_empty() { 0 } else { name };
        let mut first = parts.first_sector(name, place);
        first.resize(name, 0);
        first.extend_from_slice(parts.name.as_bytes());
        Some(Self {
            steps: vec![(0, first)],
        })
    }

    /// Behind the first sector, where there is room and the old header (`live`) is not.
    fn beside(parts: &Parts<'_>, live: &Live) -> Option<Self> {
        let beyond = parts.beyond();
        if beyond.is_empty() {
            return None;
        }
        let room = room(parts.header);
        let fits = |at: &usize| {
            let end = at + beyond.len();
            end <= room && live.leaves(*at, end)
        };
        let at = [SECTOR, live.end.max(SECTOR).next_multiple_of(HEAD)]
            .into_iter()
            .find(fits)?;
        Some(Self::beyond(parts, at, Some(beyond)))
    }

    fn beyond(parts: &Parts<'_>, at: usize, bytes: Option<Vec<u8>>) -> Self {
        let name = match parts.name {
            "" => 0,
            _ => at + parts.far.len(),
        };
        let mut first = parts.first_sector(at, name);
        first.resize(SECTOR, 0);
        let beyond = bytes.map(|bytes| (at, bytes));
        Self {
            steps: beyond.into_iter().chain([(0, first)]).collect(),
        }
    }

    /// All parts adjacent, over whatever is there.
    fn in_one_piece(header: &Header) -> Result<Self> {
        let mut list = Vec::new();
        for extension in in_order(header) {
            extension.encode(&mut list);
        }
        list.extend_from_slice(&[0; HEAD]);
        let whole = one_after_the_other(header, &list);
        if whole.len() > room(header) {
            return Err(Error::invalid(
                "the header and its extensions do not fit into the first cluster",
            ));
        }
        Ok(Self {
            steps: vec![(0, whole)],
        })
    }

    fn write(&self, storage: &dyn Storage, sync: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let write = |at: usize, bytes: &[u8]| {
            storage
                .write(at as u64, &bytes, 0, bytes.len())
                .map_err(|error| Error::io("cannot write the header", error))
        };
        for (index, (at, bytes)) in self.steps.iter().enumerate() {
            if index > 0 {
                sync()?;
            }
            write(*at, bytes)?;
        }
        Ok(())
    }
}
