//! How many groups the journal has, as the image itself records it.
//!
//! This detects copies. If a copy of an image in use is later written back into the same file, the birth, the inode and
//! the session are still those of the image, but the journal has records of clusters that the copy lacks. So before
//! groups are written to the journal, the image records how many there will be. After a kill, the journal has at least
//! as many groups as the image says were written, and at most as many as it says are about to be. With an old copy of
//! the image there are more. With an old copy of the journal there are fewer, unless only the groups are missing that
//! were being written.
//!
//! The record is at the end of the first cluster, where the format allows other data, and stays in place when the
//! header is replaced. It is never synced, since a journal is not used after a power cut.
//!
//! ```text
//! magic, session, groups written << 32 | groups about to be written, length of the image's file:
//! each of 8 bytes in big-endian order
//! ```

use std::io;
use std::sync::Arc;

use crate::formats::qcow2::layout::big_endian::be64;
use crate::storage::Storage;

/// "BHJLdone"
const MAGIC: u64 = 0x4248_4a4c_646f_6e65;
/// Bytes at the end of the first cluster.
pub(crate) const PROGRESS: usize = 32;

/// Where an image records its journal's progress.
#[derive(Clone)]
pub(crate) struct Progress {
    image: Arc<dyn Storage>,
    at: u64,
}

/// The progress of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// The groups written, as the number of the next one.
    pub(crate) written: u32,
    /// The same, once the groups are written that are about to be.
    pub(crate) next: u32,
    /// The least length of the image's file.
    pub(crate) len: u64,
}

/// What is not as the killed process left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stale {
    Image,
    Journal,
    /// The length of the image's file.
    Length {
        was: u64,
        is: u64,
    },
}

impl Progress {
    pub(crate) fn of(image: &Arc<dyn Storage>, cluster_size: u64) -> Self {
        Self {
            image: image.clone(),
            at: cluster_size.saturating_sub(PROGRESS as u64),
        }
    }

    pub(crate) fn image(&self) -> &dyn Storage {
        &*self.image
    }

    fn bytes(&self) -> io::Result<[u8; PROGRESS]> {
        let mut bytes = [0; PROGRESS];
        self.image.read(self.at, &mut &mut bytes[..], 0, PROGRESS)?;
        Ok(bytes)
    }

    /// Reads the record; `None` if it is not of this session.
    pub(crate) fn read(&self, session: u64) -> io::Result<Option<Reached>> {
        let bytes = self.bytes()?;
        let is_of_session = (be64(&bytes, 0), be64(&bytes, 8)) == (MAGIC, session);
        Ok(is_of_session.then(|| Reached {
            written: (be64(&bytes, 16) >> 32) as u32,
            next: be64(&bytes, 16) as u32,
            len: be64(&bytes, 24),
        }))
    }

    pub(crate) fn write(&self, session: u64, reached: Reached) -> io::Result<()> {
        let groups = u64::from(reached.written) << 32 | u64::from(reached.next);
        let mut bytes = [0; PROGRESS];
        let words = [MAGIC, session, groups, reached.len];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        self.image.write(self.at, &&bytes[..], 0, PROGRESS)
    }

    /// Whether the place is unused, or has a record.
    pub(crate) fn is_free(&self) -> io::Result<bool> {
        let bytes = self.bytes()?;
        Ok(bytes == [0; PROGRESS] || be64(&bytes, 0) == MAGIC)
    }

    /// Removes the record.
    pub(crate) fn clear(&self) -> io::Result<()> {
        if be64(&self.bytes()?, 0) == MAGIC {
            self.image
                .write(self.at, &&[0; PROGRESS][..], 0, PROGRESS)?;
        }
        Ok(())
    }
}

/// Compares the image's records, read before and after its journal, with the number of groups in the journal and the
/// length of the image's file. Two records, because another process may be writing to both files meanwhile.
pub(crate) fn check(
    [before, after]: [Option<Reached>; 2],
    groups: u32,
    len: u64,
) -> Result<(), Stale> {
    let (Some(before), Some(after)) = (before, after) else {
        return Err(Stale::Image);
    };
    // Numbers wrap around.
    let follows = |number: u32, other: u32| number.wrapping_sub(other) as i32 >= 0;
    match () {
        () if !follows(after.next, groups) => Err(Stale::Image),
        () if !follows(groups, before.written) => Err(Stale::Journal),
        () if len < before.len => Err(Stale::Length {
            was: before.len,
            is: len,
        }),
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_and_its_journal_belong_together_within_one_write_of_groups() {
        let says = |written, next| {
            Some(Reached {
                written,
                next,
                len: 100,
            })
        };
        let checked = |said, groups| check([said, said], groups, 100);
        assert_eq!(checked(None, 0), Err(Stale::Image));
        for start in [0, u32::MAX - 1] {
            let at = |groups: u32| start.wrapping_add(groups);
            let said = says(at(3), at(5));
            assert_eq!(checked(said, at(2)), Err(Stale::Journal));
            (3..=5).for_each(|groups| assert_eq!(checked(said, at(groups)), Ok(())));
            assert_eq!(checked(said, at(6)), Err(Stale::Image));
            // Another process writes meanwhile.
            let both = [said, says(at(8), at(9))];
            (3..=9).for_each(|groups| assert_eq!(check(both, at(groups), 200), Ok(())));
            let cut = Stale::Length { was: 100, is: 99 };
            assert_eq!(check([said, said], at(4), 99), Err(cut));
        }
    }
}
