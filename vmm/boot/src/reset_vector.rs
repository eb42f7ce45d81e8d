//! The instructions at the BIOS's reset vector, the only part of a BIOS that is needed.
//!
//! Linux resets a hardware-reduced machine through EFI or, without it, by a jump to the reset vector. It does not use
//! the reset register, so the instructions there write it.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Error;
use crate::layout::{POWER_PORTS, RESET_VALUE, RESET_VECTOR};

/// Writes the instructions, which run in real mode.
///
/// # Errors
/// When guest memory is too small.
pub fn write(memory: &GuestMemoryMmap) -> Result<(), Error> {
    let [low, high] = (POWER_PORTS.0 + 2).to_le_bytes();
    let code = [
        0xba,
        low,
        high, // mov dx, the reset register
        0xb0,
        RESET_VALUE, // mov al, value
        0xee,        // out dx, al
        0xf4,        // hlt
        0xeb,
        0xfd, // jmp back to it
    ];
    Ok(memory.write_slice(&code, GuestAddress(RESET_VECTOR))?)
}
