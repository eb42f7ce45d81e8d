//! Parses a descriptor chain into a plain request. (virtio 1.2, 5.2.6 "Device Operation")

use bulkhead_daemon::{Chain, RingError};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::GuestMemoryMmap;

use crate::config::{
    MAX_DISCARD, MAX_DISCARD_SEGMENTS, MAX_WRITE_ZEROES, MAX_WRITE_ZEROES_SEGMENTS, SECTOR,
};

/// Bytes of the serial number.
pub(crate) const SERIAL_LENGTH: usize = 20;
/// Bytes of the header: type, reserved, sector.
pub(crate) const HEADER: u32 = 16;
/// Bytes of a discard or write-zeroes segment: sector, number of sectors, flags.
const SEGMENT: u32 = 16;

/// How a request ended, as the driver sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    pub(crate) fn byte(self) -> u8 {
        let value = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        value as u8
    }
}

/// A range of the disk, in bytes. It is within the disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// A request of the driver, without its data, which is in the chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Request {
    Read(Range),
    Write(Range),
    Flush,
    Discard(Vec<Range>),
    /// Each range with whether it may be deallocated (VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP).
    WriteZeroes(Vec<(Range, bool)>),
    GetId,
}

impl Request {
    /// Whether this and `other` must be executed in order, because one changes what the other reads or writes.
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        (self.is_change() || other.is_change())
            && self.ranges().any(|a| {
                other
                    .ranges()
                    .any(|b| a.offset < b.offset + b.length && b.offset < a.offset + a.length)
            })
    }

    fn is_change(&self) -> bool {
        !matches!(self, Self::Read(_) | Self::Flush | Self::GetId)
    }

    fn ranges(&self) -> impl Iterator<Item = Range> {
        let (one, more, flagged): (_, &[Range], &[(Range, bool)]) = match self {
            Self::Read(range) | Self::Write(range) => (Some(*range), &[], &[]),
            Self::Discard(ranges) => (None, ranges, &[]),
            Self::WriteZeroes(ranges) => (None, &[], ranges),
            Self::Flush | Self::GetId => (None, &[], &[]),
        };
        let flagged = flagged.iter().map(|(range, _)| *range);
        one.into_iter().chain(more.iter().copied()).chain(flagged)
    }
}

/// The limits of the disk, which requests are checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// In bytes, whole sectors.
    pub(crate) size: u64,
    pub(crate) read_only: bool,
}

/// The offset of the status of `chain`: the last byte that the device may write.
///
/// # Errors
/// When there is none, so that the driver could not learn how the request ended.
pub(crate) fn status_offset(chain: &Chain) -> Result<u32, RingError> {
    chain
        .writable()
        .length()
        .checked_sub(1)
        .ok_or_else(|| RingError::Device("a block request has no status byte".to_owned()))
}

impl Limits {
    /// Reads and checks the request in `chain`. The inner error is the request's, the outer one the ring's.
    pub(crate) fn parse(
        &self,
        memory: &GuestMemoryMmap,
        chain: &Chain,
    ) -> Result<Result<Request, Status>, RingError> {
        let readable = chain.readable();
        let Some(payload) = readable.length().checked_sub(HEADER) else {
            return Err(RingError::Device(
                "a block request has no header".to_owned(),
            ));
        };
        let mut header = [0; HEADER as usize];
        readable.read(memory, 0, &mut header)?;
        let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let kind = u32::from_le_bytes([t0, t1, t2, t3]);
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let answer = status_offset(chain)?;

        Ok(match kind {
            VIRTIO_BLK_T_IN => self.range(sector, answer.into()).map(Request::Read),
            VIRTIO_BLK_T_OUT => self
                .writable()
                .and_then(|()| self.range(sector, payload.into()))
                .map(Request::Write),
            VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Request::GetId),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                let zeroes = kind == VIRTIO_BLK_T_WRITE_ZEROES;
                let most = if zeroes {
                    MAX_WRITE_ZEROES_SEGMENTS
                } else {
                    MAX_DISCARD_SEGMENTS
                };
                if payload == 0 || !payload.is_multiple_of(SEGMENT) || payload / SEGMENT > most {
                    return Ok(Err(Status::IoError));
                }
                let mut segments = vec![0; payload as usize];
                readable.read(memory, HEADER, &mut segments)?;
                self.writable()
                    .and_then(|()| self.segments(&segments, zeroes))
            }
            _ => Err(Status::Unsupported),
        })
    }

    fn writable(&self) -> Result<(), Status> {
        if self.read_only {
            Err(Status::IoError)
        } else {
            Ok(())
        }
    }

    /// `length` bytes from `sector` on, if they are whole sectors of the disk.
    fn range(&self, sector: u64, length: u64) -> Result<Range, Status> {
        let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
        let end = offset.checked_add(length).ok_or(Status::IoError)?;
        if !length.is_multiple_of(SECTOR) || end > self.size {
            return Err(Status::IoError);
        }
        Ok(Range { offset, length })
    }

    fn segments(&self, bytes: &[u8], zeroes: bool) -> Result<Request, Status> {
        let parsed = bytes
            .chunks_exact(SEGMENT as usize)
            .map(|segment| self.segment(segment, zeroes))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(if zeroes {
            Request::WriteZeroes(parsed)
        } else {
            Request::Discard(parsed.into_iter().map(|(range, _)| range).collect())
        })
    }

    fn segment(&self, bytes: &[u8], zeroes: bool) -> Result<(Range, bool), Status> {
        let [
            s0,
            s1,
            s2,
            s3,
            s4,
            s5,
            s6,
            s7,
            n0,
            n1,
            n2,
            n3,
            f0,
            f1,
            f2,
            f3,
        ] = *bytes
        else {
            return Err(Status::IoError);
        };
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let length = u64::from(u32::from_le_bytes([n0, n1, n2, n3])) * SECTOR;
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        let (known, most) = if zeroes {
            (VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, MAX_WRITE_ZEROES)
        } else {
            // A discard always deallocates. The specification says to refuse the flag there. (5.2.6.2)
            (0, MAX_DISCARD)
        };
        if flags & !known != 0 {
            return Err(Status::Unsupported);
        }
        if length > most {
            return Err(Status::IoError);
        }
        Ok((self.range(sector, length)?, flags != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset: u64, length: u64) -> Range {
        Range { offset, length }
    }

    #[test]
    fn order_matters_where_one_changes_what_the_other_touches() {
        let read = Request::Read(range(0, 1024));
        let write = Request::Write(range(512, 512));
        let zeroes = Request::WriteZeroes(vec![(range(4096, 512), true)]);
        let discard = Request::Discard(vec![range(0, 512), range(4096, 4096)]);

        assert!(!read.conflicts(&read));
        assert!(read.conflicts(&write) && write.conflicts(&read) && write.conflicts(&write));
        assert!(!write.conflicts(&discard) && discard.conflicts(&read));
        assert!(discard.conflicts(&zeroes) && !zeroes.conflicts(&write));
        assert!(!Request::Flush.conflicts(&write) && !write.conflicts(&Request::GetId));
        assert!(!Request::Write(range(1024, 512)).conflicts(&read));
    }
}
