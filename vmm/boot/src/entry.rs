//! What all boot protocols have in common: their input, and how the first vCPU enters the kernel.

use crate::Initramfs;

/// How the first vCPU enters the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The 64-bit boot protocol of Linux: long mode, paging on, identity mapped.
    Long {
        /// RIP.
        entry: u64,
        /// RSI: guest physical address of `struct boot_params`.
        boot_params: u64,
        /// CR3: guest physical address of the top-level page table.
        page_table: u64,
        /// Guest physical address and limit of a GDT with code at selector 0x10 and data at 0x18.
        gdt: (u64, u16),
    },
    /// The PVH direct boot protocol: 32-bit protected mode, paging off.
    Pvh {
        /// EIP.
        entry: u32,
        /// EBX: guest physical address of `struct hvm_start_info`.
        start_info: u32,
    },
}

/// What the kernel gets by any protocol.
pub(crate) struct Prepared {
    pub(crate) rsdp: u64,
    pub(crate) initramfs: Option<Initramfs>,
}
