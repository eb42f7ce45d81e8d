//! The local APIC, through its memory page (xAPIC).

use crate::interrupts::SPURIOUS_VECTOR;
use crate::memory;

const BASE: u64 = 0xfee0_0000;
const ID: usize = 0x20;
const TASK_PRIORITY: usize = 0x80;
const SPURIOUS: usize = 0xf0;
const COMMAND_LOW: usize = 0x300;
const COMMAND_HIGH: usize = 0x310;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const DELIVERY_PENDING: u32 = 1 << 12;
const LEVEL_ASSERT: u32 = 1 << 14;
const DELIVERY_INIT: u32 = 5 << 8;
const DELIVERY_STARTUP: u32 = 6 << 8;

fn read(register: usize) -> u32 {
    // SAFETY: the page of the local APIC is mapped by the start-up code.
    unsafe { memory::read_u32((BASE as *const u8).add(register)) }
}

fn write(register: usize, value: u32) {
    // SAFETY: as above; the registers written here concern interrupts only.
    unsafe { memory::write_u32((BASE as *mut u8).add(register), value) }
}

/// Makes this processor accept interrupts of all vectors.
pub(crate) fn enable() {
    write(TASK_PRIORITY, 0);
    write(SPURIOUS, SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR));
}

/// This processor's APIC id.
pub(crate) fn id() -> u8 {
    (read(ID) >> 24) as u8
}

/// Where an MSI-X message goes to reach the processor with this APIC id.
pub(crate) fn message_address(apic_id: u8) -> u64 {
    BASE | u64::from(apic_id) << 12
}

fn command(apic_id: u8, command: u32) {
    write(COMMAND_HIGH, u32::from(apic_id) << 24);
    write(COMMAND_LOW, command);
    while read(COMMAND_LOW) & DELIVERY_PENDING != 0 {
        core::hint::spin_loop();
    }
}

/// Interrupts another processor.
pub(crate) fn send(apic_id: u8, vector: u8) {
    command(apic_id, LEVEL_ASSERT | u32::from(vector));
}

/// Starts another processor in real mode at the beginning of the page below 1 MiB.
pub(crate) fn start(apic_id: u8, page: u8) {
    command(apic_id, LEVEL_ASSERT | DELIVERY_INIT);
    command(apic_id, LEVEL_ASSERT | DELIVERY_STARTUP | u32::from(page));
}
