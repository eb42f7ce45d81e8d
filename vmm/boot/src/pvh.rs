//! The PVH direct boot protocol (Xen's docs/misc/pvh.pandoc), for ELF kernels with its note.

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::Error;
use crate::entry::{Entry, Prepared};
use crate::layout::{CMDLINE, Layout, PVH_MEMORY_MAP, PVH_MODULES, PVH_START_INFO};

const MAGIC: u32 = 0x336e_c578;
/// The first version that has the memory map.
const VERSION: u32 = 1;

/// Writes the start information, and returns how the kernel is entered.
pub(crate) fn prepare(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    entry: u32,
    prepared: &Prepared,
) -> Result<Entry, Error> {
    let map: Vec<_> = layout
        .memory_map()
        .into_iter()
        .map(|(addr, size, usage)| hvm_memmap_table_entry {
            addr,
            size,
            type_: usage as u32,
            reserved: 0,
        })
        .collect();
    let modules: Vec<_> = prepared
        .initramfs
        .iter()
        .map(|initramfs| hvm_modlist_entry {
            paddr: initramfs.start,
            size: initramfs.len,
            ..Default::default()
        })
        .collect();
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: modules.len() as u32,
        modlist_paddr: PVH_MODULES,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: prepared.rsdp,
        memmap_paddr: PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(PVH_START_INFO));
    params.set_sections(&map, GuestAddress(PVH_MEMORY_MAP));
    if !modules.is_empty() {
        params.set_modules(&modules, GuestAddress(PVH_MODULES));
    }
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(|_| Error::NoRoom)?;
    Ok(Entry::Pvh {
        entry,
        start_info: PVH_START_INFO as u32,
    })
}
