//! `bulkhead-guest`: a bare-metal guest for testing a monitor and its devices from the inside.
//!
//! It is entered by PVH, goes to ring 3 at once and lives there, with all ports open to it, so that it runs at full speed
//! even where the host interprets ring 0. It finds its devices by ACPI and PCI, drives them with virtqueues and MSI-X
//! interrupts, and reports in lines on COM1:
//!
//! ```text
//! guest: start test=blk cpus=1
//! guest: blk read sectors=128 crc32=0x1234abcd
//! guest: ok
//! ```
//!
//! The last line is `guest: ok`, then it powers off, or `guest: failed: why`, then it triple-faults. What it does is chosen by words on the kernel
//! command line, see [`tests`].
//!
//! It may touch everything in its machine. It must not depend on any crate of Bulkhead: it is the other side.

#![no_std]
#![no_main]

extern crate alloc;

mod acpi;
mod apic;
mod blk;
mod cmdline;
mod interrupts;
mod ioapic;
mod memory;
mod msix;
mod net;
mod packet;
mod pattern;
mod pci;
mod port;
mod power;
mod serial;
mod smp;
mod start;
mod tests;
mod transport;

use core::panic::PanicInfo;

use serial::say;

/// Where the start-up code in `boot.s` arrives in ring 3.
#[unsafe(no_mangle)]
extern "C" fn guest_main() -> ! {
    memory::init();
    interrupts::init();
    let start = start::StartInfo::get();
    let words = cmdline::CommandLine::new(start.command_line());
    let acpi = acpi::Acpi::find(start.rsdp());
    apic::enable();
    tests::run(&words, &acpi);
    power::off(&acpi)
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    say!("failed: panic: {info}");
    power::give_up()
}

/// What the precompiled `alloc` names in its unwind tables, which the linker script throws away: nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
