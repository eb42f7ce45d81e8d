//! Ending: off, reset, crash.

use core::arch::asm;

use crate::acpi::Acpi;
use crate::serial::say;
use crate::{interrupts, port};

const SLEEP_ENABLE: u8 = 1 << 5;
const PM1_SLEEP_ENABLE: u16 = 1 << 13;

/// Powers the machine off as ACPI says.
pub(crate) fn off(acpi: &Acpi) -> ! {
    let kind = acpi.soft_off_type();
    if acpi.is_hardware_reduced() {
        acpi.sleep_control().write_u8(kind << 2 | SLEEP_ENABLE);
    } else {
        port::write_u16(
            acpi.pm1a_control(),
            u16::from(kind) << 10 | PM1_SLEEP_ENABLE,
        );
    }
    stop()
}

/// Resets the machine as ACPI says.
pub(crate) fn reset(acpi: &Acpi) -> ! {
    match acpi.reset() {
        Some((register, value)) => register.write_u8(value),
        None => say!("failed: the FADT has no reset register"),
    }
    stop()
}

/// Causes a triple fault.
pub(crate) fn triple_fault() -> ! {
    interrupts::remove_gates();
    // SAFETY: an invalid instruction, whose exception cannot be delivered any more, and so on; nothing runs after it.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// Ends after a failure that has been reported. Crashes, so that it is not mistaken for an orderly end.
pub(crate) fn give_up() -> ! {
    triple_fault()
}

fn stop() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
