//! Interrupts and exceptions: the assembler parts of the program, and the table that leads to them.

use core::arch::global_asm;
use core::ptr::read_volatile;

use crate::power;
use crate::serial::say;

global_asm!(
    include_str!("boot.s"),
    include_str!("interrupts.s"),
    include_str!("trampoline.s"),
    options(att_syntax)
);

/// The first vector whose interrupts are counted. There are [`COUNTED_VECTORS`] of them.
pub(crate) const FIRST_VECTOR: u8 = 0x20;
const COUNTED_VECTORS: u8 = 64;
/// The local APIC's spurious interrupt vector.
pub(crate) const SPURIOUS_VECTOR: u8 = 0xff;
/// The vector of interrupts from another processor.
pub(crate) const IPI_VECTOR: u8 = 0x5f;

const EXCEPTIONS: usize = 32;
const STUB_SIZE: usize = 16;
const RING0_CODE: u64 = 0x10;
const INTERRUPT_GATE: u64 = 0x8e00;

#[repr(C)]
struct ExceptionRecord {
    vector: u64,
    error: u64,
    instruction: u64,
    code_segment: u64,
    address: u64,
}

unsafe extern "C" {
    static interrupt_stubs: [u8; STUB_SIZE * COUNTED_VECTORS as usize];
    static exception_stubs: [u8; STUB_SIZE * EXCEPTIONS];
    static interrupt_counts: [u64; 256];
    static exception_record: ExceptionRecord;
    static mut interrupt_descriptors: [[u64; 2]; 256];
    fn spurious_interrupt();
}

/// Fills the interrupt descriptor table, which the start-up code has loaded.
pub(crate) fn init() {
    for vector in 0..EXCEPTIONS {
        set_gate(
            vector,
            (&raw const exception_stubs) as u64 + (vector * STUB_SIZE) as u64,
        );
    }
    for index in 0..usize::from(COUNTED_VECTORS) {
        set_gate(
            usize::from(FIRST_VECTOR) + index,
            (&raw const interrupt_stubs) as u64 + (index * STUB_SIZE) as u64,
        );
    }
    set_gate(
        usize::from(SPURIOUS_VECTOR),
        spurious_interrupt as *const () as u64,
    );
}

fn set_gate(vector: usize, handler: u64) {
    let low =
        handler & 0xffff | RING0_CODE << 16 | INTERRUPT_GATE << 32 | (handler >> 16 & 0xffff) << 48;
    let gate = [low, handler >> 32];
    // SAFETY: only the boot processor writes the table, and the processor reads a gate only when its interrupt happens.
    unsafe { (&raw mut interrupt_descriptors[vector]).write_volatile(gate) }
}

/// Empties the interrupt descriptor table: the next exception cannot be delivered, nor can the double fault of that.
pub(crate) fn remove_gates() {
    // SAFETY: as in `set_gate`; that nothing can be delivered any more is the purpose.
    unsafe { (&raw mut interrupt_descriptors).write_volatile([[0, 0]; 256]) }
}

/// How many interrupts of this vector there have been since the start, on all processors together.
pub(crate) fn count(vector: u8) -> u64 {
    // SAFETY: aligned, and written in ring 0 by one instruction; read anew each time.
    unsafe { read_volatile(&raw const interrupt_counts[usize::from(vector)]) }
}

/// Where an exception continues, in ring 3 and on a stack of its own.
#[unsafe(no_mangle)]
extern "C" fn report_exception() -> ! {
    // SAFETY: written by the exception handler, and nothing else happens any more.
    let record = unsafe { &exception_record };
    say!(
        "failed: exception {} error={:#x} rip={:#x} cs={:#x} cr2={:#x}",
        record.vector,
        record.error,
        record.instruction,
        record.code_segment,
        record.address
    );
    power::give_up()
}
