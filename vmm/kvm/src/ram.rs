//! Guest RAM: one sealed memfd, which the backends map, too.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::Error;

/// Guest RAM with the given `(guest physical address, length in bytes)` ranges, sorted and page-aligned.
///
/// It is one memfd, whose size is sealed: a process that shares it can write to it, but cannot truncate it and so make
/// the monitor's accesses fault. With `hugepages` it uses the host's pool of 2 MiB pages.
///
/// # Errors
/// When the host refuses the memory.
pub fn guest_ram(ranges: &[(u64, u64)], hugepages: bool) -> Result<GuestMemoryMmap, Error> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if hugepages {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let fd = memfd_create("guest-ram", flags).map_err(|e| Error::Ram("memfd_create", e.into()))?;
    let total = ranges.iter().map(|(_, len)| len).sum();
    ftruncate(&fd, total).map_err(|e| Error::Ram("ftruncate", e.into()))?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(|e| Error::Ram("sealing", e.into()))?;

    let file = Arc::new(File::from(fd));
    let mut offset = 0;
    let mut regions = Vec::with_capacity(ranges.len());
    for &(start, len) in ranges {
        regions.push(map(&file, offset, start, len, hugepages)?);
        offset += len;
    }
    GuestMemoryMmap::from_regions(regions)
        .map_err(|e| Error::Ram("layout", io::Error::other(e.to_string())))
}

fn map(
    file: &Arc<File>,
    offset: u64,
    start: u64,
    len: u64,
    hugepages: bool,
) -> Result<GuestRegionMmap, Error> {
    // Huge pages are reserved now, so that a pool that is too small is an error here and not a SIGBUS later.
    let reserve = if hugepages { 0 } else { libc::MAP_NORESERVE };
    let len = usize::try_from(len).map_err(|e| Error::Ram("size", io::Error::other(e)))?;
    let mapping = MmapRegionBuilder::new(len)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | reserve)
        .with_file_offset(FileOffset::from_arc(file.clone(), offset))
        .with_hugetlbfs(hugepages)
        .build()
        .map_err(|error| match error {
            MmapRegionError::Mmap(error) if hugepages => {
                Error::Ram("2 MiB pages (see /proc/sys/vm/nr_hugepages)", error)
            }
            MmapRegionError::Mmap(error) => Error::Ram("mmap", error),
            error => Error::Ram("mmap", io::Error::other(error.to_string())),
        })?;
    GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or_else(|| {
        Error::Ram(
            "layout",
            io::Error::other("a range wraps around the address space"),
        )
    })
}

#[cfg(test)]
mod tests {
    use rustix::fs::fcntl_get_seals;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn ranges_share_one_memfd_whose_size_cannot_change() {
        let ram = guest_ram(&[(0, 2 * MIB), (4 << 30, MIB)], false).unwrap();

        let offsets: Vec<_> = ram
            .iter()
            .map(|region| (region.start_addr().0, region.file_offset().unwrap().start()))
            .collect();
        assert_eq!(offsets, [(0, 0), (4 << 30, 2 * MIB)]);
        let file = ram.iter().next().unwrap().file_offset().unwrap().file();
        assert!(file.set_len(4096).is_err());
        assert!(file.set_len(64 * MIB).is_err());
        assert!(fcntl_get_seals(file).unwrap().contains(SealFlags::SEAL));
    }

    #[test]
    fn what_is_written_through_one_mapping_is_seen_through_the_file() {
        let ram = guest_ram(&[(0, MIB), (4 << 30, MIB)], false).unwrap();

        ram.write_slice(b"above the hole", GuestAddress(4 << 30))
            .unwrap();

        let file = ram.iter().next().unwrap().file_offset().unwrap().file();
        let mut seen = [0; 14];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut seen, MIB).unwrap();
        assert_eq!(&seen, b"above the hole");
    }
}
