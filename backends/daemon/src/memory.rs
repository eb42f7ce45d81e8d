//! Guest memory as the frontend shares it: regions mapped from its files, and its own addresses of them.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

use crate::sigbus::{self, Mapped};

/// As many regions as the kernel's vhost takes by default.
pub(crate) const MAX_REGIONS: usize = 509;

/// A region as the messages describe it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct RegionLayout {
    pub(crate) guest_address: u64,
    pub(crate) user_address: u64,
    pub(crate) size: u64,
    pub(crate) file_offset: u64,
}

/// Guest memory, and the frontend's addresses of it.
#[derive(Default)]
pub(crate) struct Memory {
    /// Requests in flight have clones, so that what they use stays mapped until they end.
    guest: Arc<GuestMemoryMmap>,
    layout: Vec<RegionLayout>,
}

impl Memory {
    pub(crate) fn guest(&self) -> &Arc<GuestMemoryMmap> {
        &self.guest
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.layout.is_empty()
    }

    /// Maps all `regions` in place of what was mapped before. (SET_MEM_TABLE)
    pub(crate) fn replace(&mut self, regions: Vec<(RegionLayout, File)>) -> Result<(), String> {
        let mut fresh = Self::default();
        for (layout, file) in regions {
            fresh.add(layout, file)?;
        }
        *self = fresh;
        Ok(())
    }

    /// Maps one more region. (ADD_MEM_REG)
    pub(crate) fn add(&mut self, layout: RegionLayout, file: File) -> Result<(), String> {
        if self.layout.len() >= MAX_REGIONS {
            return Err(format!("more than {MAX_REGIONS} memory regions"));
        }
        let (region, mapped) = map(layout, file)?;
        let overlaps = |old: &RegionLayout| {
            old.user_address < layout.user_address.saturating_add(layout.size)
                && layout.user_address < old.user_address.saturating_add(old.size)
        };
        if self.layout.iter().any(overlaps) {
            return Err("memory regions overlap in the frontend's address space".to_owned());
        }
        let region = Arc::new(region);
        sigbus::watch(Arc::clone(&region) as _, mapped)?;
        let more = self
            .guest
            .insert_region(region)
            .map_err(|error| format!("memory region {:#x}: {error}", layout.guest_address))?;
        self.guest = Arc::new(more);
        self.layout.push(layout);
        Ok(())
    }

    /// Unmaps a region. (REM_MEM_REG)
    pub(crate) fn remove(&mut self, layout: RegionLayout) -> Result<(), String> {
        // The specification says that the file offset is ignored here.
        let position = self.layout.iter().position(|old| {
            old.guest_address == layout.guest_address
                && old.user_address == layout.user_address
                && old.size == layout.size
        });
        let position =
            position.ok_or_else(|| format!("no memory region at {:#x}", layout.guest_address))?;
        if self.layout.len() == 1 {
            *self = Self::default();
            return Ok(());
        }
        let (fewer, _) = self
            .guest
            .remove_region(GuestAddress(layout.guest_address), layout.size)
            .map_err(|error| format!("memory region {:#x}: {error}", layout.guest_address))?;
        self.guest = Arc::new(fewer);
        self.layout.remove(position);
        Ok(())
    }

    /// The guest address of an address in the frontend's address space, which the frontend uses for rings.
    pub(crate) fn translate(&self, user_address: u64) -> Option<GuestAddress> {
        self.layout.iter().find_map(|region| {
            let offset = user_address.checked_sub(region.user_address)?;
            (offset < region.size).then_some(GuestAddress(region.guest_address + offset))
        })
    }
}

fn map(layout: RegionLayout, file: File) -> Result<(GuestRegionMmap, Mapped), String> {
    let what = || format!("memory region {:#x}", layout.guest_address);
    let size = usize::try_from(layout.size).map_err(|_| format!("{}: too large", what()))?;
    let end = layout
        .file_offset
        .checked_add(layout.size)
        .ok_or_else(|| format!("{}: too large", what()))?;
    let metadata = file
        .metadata()
        .map_err(|error| format!("{}: {error}", what()))?;
    let length = metadata.len();
    if length < end {
        return Err(format!(
            "{}: its file has {length} bytes, {end} are needed",
            what()
        ));
    }
    let mapping = MmapRegion::from_file(FileOffset::new(file, layout.file_offset), size)
        .map_err(|error| format!("{}: {error}", what()))?;
    let mapped = Mapped {
        start: mapping.as_ptr(),
        length: size,
        block: metadata.blksize(),
    };
    GuestRegionMmap::new(mapping, GuestAddress(layout.guest_address))
        .map(|region| (region, mapped))
        .ok_or_else(|| format!("{}: beyond the end of the address space", what()))
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(
                self.guest
                    .iter()
                    .map(|region| (region.start_addr(), region.len())),
            )
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    const SIZE: u64 = 0x4000;

    fn file(length: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        file
    }

    fn layout(guest_address: u64, user_address: u64) -> RegionLayout {
        RegionLayout {
            guest_address,
            user_address,
            size: SIZE,
            file_offset: 0,
        }
    }

    #[test]
    fn an_address_of_the_frontend_becomes_the_guests() {
        let mut memory = Memory::default();
        memory
            .replace(vec![
                (layout(0x10_0000, 0x7000_0000), file(SIZE)),
                (layout(0, 0x9000_0000), file(SIZE)),
            ])
            .unwrap();

        assert_eq!(memory.translate(0x9000_0010), Some(GuestAddress(0x10)));
        assert_eq!(memory.translate(0x7000_3fff), Some(GuestAddress(0x10_3fff)));
        assert_eq!(memory.translate(0x7000_4000), None);
        assert_eq!(memory.translate(0), None);
    }

    #[test]
    fn both_ends_see_one_memory() {
        use std::os::unix::fs::FileExt;
        let shared = file(SIZE);
        let mut memory = Memory::default();
        memory
            .add(layout(0x1000, 0), shared.try_clone().unwrap())
            .unwrap();

        memory.guest().write_obj(7u8, GuestAddress(0x1003)).unwrap();

        let mut seen = [0; 4];
        shared.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, [0, 0, 0, 7]);
    }

    #[test]
    fn regions_that_cannot_be_are_refused() {
        let mut memory = Memory::default();
        memory.add(layout(0, 0), file(SIZE)).unwrap();

        assert!(memory.add(layout(0x1000, 0x10_0000), file(SIZE)).is_err());
        assert!(memory.add(layout(0x10_0000, 0x1000), file(SIZE)).is_err());
        assert!(
            memory
                .add(layout(0x10_0000, 0x10_0000), file(SIZE - 1))
                .is_err()
        );
        let beyond = RegionLayout {
            file_offset: u64::MAX,
            ..layout(0x10_0000, 0x10_0000)
        };
        assert!(memory.add(beyond, file(SIZE)).is_err());
        assert!(memory.remove(layout(0x10_0000, 0)).is_err());
    }

    #[test]
    fn a_region_comes_and_goes() {
        let mut memory = Memory::default();
        memory.add(layout(0, 0x10_0000), file(SIZE)).unwrap();
        memory.add(layout(SIZE, 0x20_0000), file(SIZE)).unwrap();

        memory.remove(layout(0, 0x10_0000)).unwrap();
        assert_eq!(memory.translate(0x10_0000), None);
        assert_eq!(memory.translate(0x20_0000), Some(GuestAddress(SIZE)));

        memory.remove(layout(SIZE, 0x20_0000)).unwrap();
        assert_eq!(memory.guest().num_regions(), 0);
    }
}
