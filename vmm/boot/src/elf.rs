//! What an ELF file's header announces, checked before the file is loaded.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::Error;

pub(crate) const MAGIC: &[u8; 4] = b"\x7fELF";
const CLASS_64: u8 = 2;
const MACHINE_X86_64: u16 = 62;
const PROGRAM_HEADER_SIZE: u16 = 56;
const PT_LOAD: u32 = 1;

/// Checks that `file` is a 64-bit x86 ELF file of `actual` bytes, all of whose segments are in it.
/// Returns where its segments are in guest memory, from the lowest to the highest.
pub(crate) fn check(file: &File, actual: u64) -> Result<Range<u64>, Error> {
    let truncated = |announced| Error::TruncatedKernel { announced, actual };
    let read = |at: u64, buffer: &mut [u8]| {
        file.read_exact_at(buffer, at).map_err(|error| {
            match (error.kind(), at.checked_add(buffer.len() as u64)) {
                (std::io::ErrorKind::UnexpectedEof, Some(end)) => truncated(end),
                _ => Error::Read(error),
            }
        })
    };
    let mut header = [0; 64];
    read(0, &mut header)?;
    if header[4] != CLASS_64 || u16_at(&header, 18) != MACHINE_X86_64 {
        return Err(Error::NotAKernel("it is for another architecture"));
    }
    if u16_at(&header, 54) != PROGRAM_HEADER_SIZE {
        return Err(Error::NotAKernel("its program headers have a wrong size"));
    }
    let table = u64_at(&header, 32);
    let (mut lowest, mut highest) = (u64::MAX, 0);
    for index in 0..u64::from(u16_at(&header, 56)) {
        let at = index
            .checked_mul(PROGRAM_HEADER_SIZE.into())
            .and_then(|offset| table.checked_add(offset))
            .ok_or_else(|| truncated(u64::MAX))?;
        let mut segment = [0; PROGRAM_HEADER_SIZE as usize];
        read(at, &mut segment)?;
        if u32_at(&segment, 0) != PT_LOAD {
            continue;
        }
        let announced = u64_at(&segment, 8).saturating_add(u64_at(&segment, 32));
        if announced > actual {
            return Err(truncated(announced));
        }
        let start = u64_at(&segment, 24);
        let end = start.saturating_add(u64_at(&segment, 40));
        lowest = lowest.min(start);
        highest = highest.max(end);
    }
    if lowest >= highest {
        return Err(Error::NotAKernel("it has nothing to load"));
    }
    Ok(lowest..highest)
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    from.get(at..at + N)
        .and_then(|bytes| bytes.try_into().ok())
        .unwrap_or([0; N])
}

fn u16_at(from: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes(from, at))
}

fn u32_at(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes(from, at))
}

fn u64_at(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes(from, at))
}
