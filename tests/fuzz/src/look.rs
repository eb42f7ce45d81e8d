//! What can be asked of an image without changing it. Several answers are about the same thing, and must agree.

use qcow::{Extent, Format, Image, Place, Plan, Repair, Storage};

use crate::host::Host;
use crate::program::Step;

/// The most extents that are asked for one after the other.
const MOST_EXTENTS: usize = 64;
/// The most bytes of an extent that are read.
const MOST_BYTES: u64 = 8 << 10;
/// The most bitmaps and snapshots that are looked at.
const FEW: usize = 4;

impl Step {
    /// Asks one thing of an image that nobody changes. An error is as good as data; a panic is not.
    pub fn look(self, host: &Host, image: &Image) {
        match self.kind % 8 {
            0 | 1 => self.read_twice(image),
            2 => self.map_chain(host, image),
            3 => self.map_alone(host, image),
            4 => self.read_by_plan(host, image),
            5 => facts(image),
            6 => bitmaps(image),
            _ => check(image),
        }
    }

    /// At once, and in two parts.
    fn read_twice(self, image: &Image) {
        let (offset, len) = self.range(image.virtual_size());
        let mut whole = vec![0; len as usize];
        let read = image.read_at(offset, &mut whole).is_ok();
        let mut parts = vec![0; len as usize];
        let (front, back) = parts.split_at_mut(len as usize / 2);
        let behind = offset + front.len() as u64;
        let read_parts = image.read_at(behind, back).is_ok() & image.read_at(offset, front).is_ok();
        assert_eq!(
            read, read_parts,
            "{offset}+{len} can be read, or not, in parts"
        );
        assert!(!read || whole == parts, "{offset}+{len} reads differently");
    }

    /// The extents of the chain, as a copy or a measurement asks for them.
    fn map_chain(self, host: &Host, image: &Image) {
        let (mut at, size) = (self.range(image.virtual_size()).0, image.virtual_size());
        for _ in 0..MOST_EXTENTS {
            if at == size {
                return;
            }
            let Ok(extent) = image.map(at, size - at) else {
                return;
            };
            fits(&extent, at, size - at);
            holds(host, image, &extent);
            at += extent.length;
        }
    }

    /// The extents of the image itself.
    fn map_alone(self, host: &Host, image: &Image) {
        let (offset, len) = self.range(image.virtual_size());
        let (mut at, end) = (offset, offset + len);
        for _ in 0..MOST_EXTENTS {
            if at == end {
                return;
            }
            let Ok(extent) = image.map_layer(at, end - at) else {
                return;
            };
            fits(&extent, at, end - at);
            assert_eq!(extent.depth, 0, "{extent:?} is of this image");
            if extent.present {
                holds(host, image, &extent);
            }
            at += extent.length;
        }
    }

    /// Reads where the image says that its data is.
    pub(crate) fn read_by_plan(self, host: &Host, image: &Image) {
        let (offset, len) = self.range(image.virtual_size());
        let Ok(Some(plan)) = image.plan_read(offset, len as usize) else {
            return;
        };
        let Some(planned) = read_by(host, &plan, len as usize) else {
            return;
        };
        drop(plan);
        let mut bytes = vec![0; len as usize];
        if image.read_at(offset, &mut bytes).is_ok() {
            assert!(bytes == planned, "a plan leads elsewhere");
        }
    }
}

fn fits(extent: &Extent, at: u64, len: u64) {
    assert!(
        extent.start == at && extent.length > 0 && extent.length <= len,
        "{extent:?} is not the beginning of {at}+{len}"
    );
}

/// What an extent says of its content must be so.
fn holds(host: &Host, image: &Image, extent: &Extent) {
    let len = extent.length.min(MOST_BYTES) as usize;
    let mut bytes = vec![0; len];
    let read = image.read_at(extent.start, &mut bytes);
    if extent.zero {
        // Nothing below is opened here without need, and what is nowhere cannot be read then.
        assert!(
            read.is_err() || bytes.iter().all(|byte| *byte == 0),
            "{extent:?} is not zero"
        );
        return;
    }
    let own = extent.depth == 0 && extent.data && !extent.compressed;
    let (Some(offset), true, Ok(())) = (extent.offset, own, read) else {
        return;
    };
    let file = match image.format() {
        Format::Raw => host.file(0),
        Format::Qcow2 => host.data(),
    };
    let Some(file) = file else {
        return;
    };
    let mut stored = vec![0; len];
    if file.read(offset, &mut &mut stored[..], 0, len).is_ok() {
        assert!(bytes == stored, "{extent:?} is elsewhere");
    }
}

/// What a plan leads to, if that is all in the image's own files.
fn read_by(host: &Host, plan: &Plan, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut end = 0;
    for part in &plan.parts {
        assert!(part.at == end && part.len > 0, "{plan:?} has a gap");
        end = part.at + part.len;
        if let Place::File { file, offset } = part.place {
            let mut piece = &mut bytes[part.at..end];
            host.file(file)?
                .read(offset, &mut piece, 0, part.len)
                .ok()?;
        }
    }
    assert_eq!(end, len, "{plan:?} is not all of it");
    Some(bytes)
}

/// All that is told of an image. It is told again in the same words.
fn facts(image: &Image) {
    let told = || format!("{:?}", image.info().map_err(|error| error.to_string()));
    assert_eq!(told(), told());
    let snapshots = image.snapshots().unwrap_or_default();
    if let Ok(facts) = image.info() {
        assert_eq!(facts.snapshots, snapshots);
        assert_eq!(facts.cluster_size, image.cluster_size());
    }
    assert!(image.files().is_none(), "memory is no file");
    let _ = (image.repaired(), image.is_ahead(), image.plan_flush());
}

/// The ranges of bitmaps: in order, apart, within the disk.
fn bitmaps(image: &Image) {
    let facts = image.info().ok().and_then(|facts| facts.qcow2);
    let bitmaps = facts.map(|facts| facts.bitmaps).unwrap_or_default();
    for bitmap in bitmaps.iter().take(FEW) {
        let Ok(ranges) = image.bitmap_ranges(&bitmap.name) else {
            continue;
        };
        let mut end = None;
        for (start, len) in ranges {
            assert!(len > 0 && end.is_none_or(|end| start > end), "{bitmap:?}");
            end = Some(start + len);
        }
        assert!(end <= Some(image.virtual_size()), "{bitmap:?}: {end:?}");
    }
}

/// Checks an image that is in use, and may not be repaired.
fn check(image: &Image) {
    if image.is_writable() {
        return;
    }
    let _ = image.check(Repair::None);
    assert!(image.check(Repair::Leaks).is_err() && image.check(Repair::All).is_err());
}
