//! Tests of the machine itself: processors and memory.

use crate::acpi::Acpi;
use crate::cmdline::CommandLine;
use crate::ioapic::IoApic;
use crate::serial::say;
use crate::start::StartInfo;
use crate::{apic, interrupts, memory, pattern, serial, smp};

const PAGE: u64 = 4096;
/// Below this lie the real-mode parts, tables of the firmware, the program itself and its heap.
const FIRST_FREE: u64 = 64 << 20;

/// Starts all processors, lets them count together, interrupts each.
pub(super) fn processors(words: &CommandLine, acpi: &Acpi) {
    let amount = words.number("n", 100_000);
    let this = apic::id();
    let processors = acpi.processors();
    assert!(
        processors.contains(&this),
        "the MADT does not have this processor, APIC id {this}"
    );
    let mut started = 0;
    for apic_id in processors.iter().copied().filter(|id| *id != this) {
        started += 1;
        smp::start(started, apic_id);
        say!("smp processor={started} apic-id={apic_id} started");
    }
    let total = smp::count_together(started as u64, amount);
    for apic_id in processors.iter().copied().filter(|id| *id != this) {
        smp::interrupt(apic_id);
    }
    say!(
        "smp processors={} counted={total} interrupted={started}",
        processors.len()
    );
}

/// Writes a word into every `stride` bytes of memory, then checks all of them.
pub(super) fn memory(words: &CommandLine) {
    let stride = words.number("stride", PAGE);
    let mut total = 0;
    for (start, size) in StartInfo::get().memory() {
        say!("memory start={start:#x} size={size:#x}");
        total += size;
        memory::map_device(start, size);
        for place in places(start, size, stride) {
            // SAFETY: memory that the monitor says is ordinary memory, mapped, and above everything that is in use.
            unsafe { (place as *mut [u8; 8]).write_volatile(pattern::word(0, place)) }
        }
    }
    for place in StartInfo::get()
        .memory()
        .flat_map(move |(start, size)| places(start, size, stride))
    {
        // SAFETY: as above.
        let word = unsafe { (place as *const [u8; 8]).read_volatile() };
        assert!(
            word == pattern::word(0, place),
            "memory at {place:#x} does not hold what was written"
        );
    }
    say!("memory total={total}");
}

fn places(start: u64, size: u64, stride: u64) -> impl Iterator<Item = u64> {
    let first = start.max(FIRST_FREE).next_multiple_of(PAGE);
    (first..start + size).step_by(stride as usize)
}

/// Counts the presses of the power button, as the lines say that it receives.
pub(super) fn power_button(acpi: &Acpi) {
    const VECTOR: u8 = 0x58;
    let line = acpi.event_line();
    let Some(address) = acpi.io_apic() else {
        panic!("the MADT has no I/O APIC with line 0");
    };
    let io_apic = IoApic::new(address);
    io_apic.set(line, VECTOR, true);
    say!("button line={line} ready");
    let mut seen = 0;
    loop {
        let command = serial::read_line();
        match command.as_slice() {
            b"enable" => io_apic.set(line, VECTOR, false),
            b"count" => seen = interrupts::count(VECTOR),
            b"wait" => {
                while interrupts::count(VECTOR) == seen {
                    core::hint::spin_loop();
                }
                seen = interrupts::count(VECTOR);
            }
            b"end" => return,
            _ => panic!("{} is no command", command.escape_ascii()),
        }
        say!("button {} presses={seen}", command.escape_ascii());
    }
}

/// Says again every line it receives.
pub(super) fn echo(words: &CommandLine) {
    say!("echo ready");
    for _ in 0..words.number("n", 1) {
        let line = serial::read_line();
        say!("echo {}", line.escape_ascii());
    }
}
