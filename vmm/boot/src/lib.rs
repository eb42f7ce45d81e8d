//! `bulkhead-boot`: writes what is in guest RAM before the first instruction: kernel, initramfs, command line, boot
//! parameters and ACPI tables.
//!
//! Its functions are pure ones over guest memory: it may touch guest RAM, and read the files that it gets. It must not
//! open a file, and depends on neither KVM nor devices. [`layout`] has all addresses.

#![forbid(unsafe_code)]

pub mod acpi;
mod elf;
mod entry;
mod initramfs;
mod kernel;
pub mod layout;
mod linux;
mod pvh;
pub mod reset_vector;

pub use entry::Entry;
pub use initramfs::Initramfs;
pub use kernel::Kernel;
pub use layout::Layout;

use std::io;

use thiserror::Error;

/// Why a guest cannot be prepared. The messages follow the name of the file they are about.
#[derive(Debug, Error)]
pub enum Error {
    /// The kernel file has no bytes.
    #[error("is empty")]
    EmptyKernel,
    /// The kernel is none of the formats understood.
    #[error("is not a kernel: neither an x86-64 bzImage nor an x86-64 ELF image ({0})")]
    NotAKernel(&'static str),
    /// The kernel file ends before what its header announces.
    #[error("is truncated: its header announces {announced} bytes, the file has {actual}")]
    TruncatedKernel {
        /// The length in the header.
        announced: u64,
        /// The length of the file.
        actual: u64,
    },
    /// The kernel does not fit.
    #[error("does not fit into the guest's memory: it needs RAM up to address {0:#x}")]
    KernelTooLarge(u64),
    /// The kernel cannot be loaded for another reason.
    #[error("cannot be loaded: {0}")]
    Load(linux_loader::loader::Error),
    /// A kernel or initramfs file cannot be read.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// The initramfs does not fit beside the kernel.
    #[error(
        "does not fit into the guest's memory: it has {size} bytes, {room} are left below {limit:#x}"
    )]
    InitramfsTooLarge {
        /// Its size.
        size: u64,
        /// The room beside the kernel.
        room: u64,
        /// The highest address the kernel takes an initramfs at.
        limit: u64,
    },
    /// The initramfs file has no bytes.
    #[error("is empty")]
    EmptyInitramfs,
    /// The command line is longer than the kernel takes, or has a zero byte in it.
    #[error("the kernel takes a command line of at most {0} bytes without a zero byte")]
    Cmdline(usize),
    /// Guest memory is too small for the tables below 1 MiB.
    #[error("guest memory is too small for the boot tables")]
    NoRoom,
}

impl From<vm_memory::GuestMemoryError> for Error {
    fn from(_: vm_memory::GuestMemoryError) -> Self {
        Self::NoRoom
    }
}
