//! What boot protocols take and give: what each tells the kernel, and how the first vCPU enters it.

use crate::Initramfs;

/// How the first vCPU enters the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// In long mode, as the 64-bit boot protocol of Linux has it.
    Long {
        /// RIP.
        entry: u64,
        /// RSI.
        boot_params: u64,
        /// CR3.
        page_table: u64,
        /// Base and limit of the GDT.
        gdt: (u64, u16),
    },
    /// In 32-bit protected mode, as the PVH direct boot protocol has it.
    Pvh {
        /// EIP.
        entry: u32,
        /// EBX.
        start_info: u32,
    },
}

/// What all protocols tell the kernel.
pub(crate) struct Prepared {
    pub(crate) rsdp: u64,
    pub(crate) initramfs: Option<Initramfs>,
}
