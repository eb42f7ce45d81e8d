//! The PVH start information the monitor hands over (`struct hvm_start_info`).

use core::ffi::{CStr, c_char};

const MAGIC: u32 = 0x336e_c578;

unsafe extern "C" {
    static start_info: u64;
}

/// `struct hvm_start_info`, as far as it is used.
#[repr(C)]
pub(crate) struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// `struct hvm_memmap_table_entry`.
#[repr(C)]
struct MemoryMapEntry {
    start: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

const ORDINARY_MEMORY: u32 = 1;

impl StartInfo {
    /// The start information whose address `boot.s` has noted.
    ///
    /// # Panics
    /// When the magic number is wrong: the monitor did not hand over start information.
    pub(crate) fn get() -> &'static Self {
        // SAFETY: written once by boot.s before this program began.
        let address = unsafe { start_info };
        // SAFETY: all memory is mapped one to one, and the PVH boot protocol says that %ebx points to this structure.
        let info = unsafe { &*(address as *const Self) };
        assert!(
            info.magic == MAGIC,
            "start information at {address:#x} has magic {:#x}",
            info.magic
        );
        info
    }

    /// The kernel command line.
    pub(crate) fn command_line(&self) -> &'static str {
        if self.command_line == 0 {
            return "";
        }
        // SAFETY: the PVH boot protocol says that this is the address of a string that ends with a zero byte.
        let text = unsafe { CStr::from_ptr(self.command_line as *const c_char) };
        text.to_str().unwrap_or("")
    }

    /// Where the ACPI root pointer is.
    pub(crate) fn rsdp(&self) -> u64 {
        self.rsdp
    }

    /// Start and size of each part of ordinary memory.
    pub(crate) fn memory(&self) -> impl Iterator<Item = (u64, u64)> {
        let entries = match self.version {
            0 => &[],
            // SAFETY: the PVH boot protocol says that so many entries are at that address, since version 1.
            _ => unsafe {
                core::slice::from_raw_parts(
                    self.memory_map as *const MemoryMapEntry,
                    self.memory_map_entries as usize,
                )
            },
        };
        entries
            .iter()
            .filter(|entry| entry.kind == ORDINARY_MEMORY)
            .map(|entry| (entry.start, entry.size))
    }
}
