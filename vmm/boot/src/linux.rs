//! The 64-bit boot protocol of Linux (Documentation/arch/x86/boot.rst), for bzImages and for ELF kernels without a
//! PVH note.

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::entry::{Entry, Prepared};
use crate::layout::{BOOT_PARAMS, GDT, Layout, PAGE_SIZE, PAGE_TABLES};
use crate::{Error, layout};

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448; // "HdrS"
/// The type of a boot loader that has no number assigned.
const LOADER_UNDEFINED: u8 = 0xff;

/// The GDT: two null descriptors, 64-bit code at 0x10, flat data at 0x18, and a TSS at 0x20.
const DESCRIPTORS: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x008f_8b00_0000_ffff,
];

const PRESENT_WRITABLE: u64 = 3;
const LARGE_PAGE: u64 = 1 << 7;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
const ENTRIES: u64 = 512;

/// The header for ELF kernels, which have none of their own.
pub(crate) fn default_header() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        kernel_alignment: 0x0100_0000,
        ..Default::default()
    }
}

/// Writes boot parameters, page tables and GDT, and returns how the kernel is entered.
pub(crate) fn prepare(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    entry: u64,
    header: &setup_header,
    prepared: &Prepared,
) -> Result<Entry, Error> {
    let mut params = boot_params {
        hdr: *header,
        acpi_rsdp_addr: prepared.rsdp,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    if let Some(initramfs) = prepared.initramfs {
        params.hdr.ramdisk_image = initramfs.start as u32;
        params.hdr.ramdisk_size = initramfs.len as u32;
    }
    let map = layout.memory_map();
    for (place, &(addr, size, usage)) in params.e820_table.iter_mut().zip(&map) {
        *place = boot_e820_entry {
            addr,
            size,
            r#type: usage as u32,
        };
    }
    params.e820_entries = map.len() as u8;
    let params = BootParams::new(&params, GuestAddress(BOOT_PARAMS));
    LinuxBootConfigurator::write_bootparams(&params, memory).map_err(|_| Error::NoRoom)?;

    for (address, descriptor) in (GDT..).step_by(8).zip(DESCRIPTORS) {
        memory.write_obj(descriptor, GuestAddress(address))?;
    }
    write_page_tables(memory)?;
    Ok(Entry::Long {
        entry,
        boot_params: BOOT_PARAMS,
        page_table: PAGE_TABLES,
        gdt: (GDT, (size_of_val(&DESCRIPTORS) - 1) as u16),
    })
}

/// Writes an identity mapping of the first 4 GiB in pages of 2 MiB.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), Error> {
    let pointers = PAGE_TABLES + PAGE_SIZE;
    let directories = pointers + PAGE_SIZE;
    let table = |entries: &mut dyn Iterator<Item = u64>| -> Vec<u8> {
        entries.flat_map(u64::to_le_bytes).collect()
    };
    let level_4 = table(&mut [pointers | PRESENT_WRITABLE].into_iter());
    let level_3 = table(&mut (0..4).map(|at| (directories + at * PAGE_SIZE) | PRESENT_WRITABLE));
    let level_2 = table(
        &mut (0..4 * ENTRIES).map(|at| (at * LARGE_PAGE_SIZE) | PRESENT_WRITABLE | LARGE_PAGE),
    );
    memory.write_slice(&level_4, GuestAddress(PAGE_TABLES))?;
    memory.write_slice(&level_3, GuestAddress(pointers))?;
    memory.write_slice(&level_2, GuestAddress(directories))?;
    Ok(())
}
