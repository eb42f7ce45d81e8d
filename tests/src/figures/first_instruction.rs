//! From exec of the monitor to the guest's first instruction, which writes a byte to the serial port.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use super::{Measurement, median};
use crate::workplace::{Workplace, scratch_folder};

const ROUNDS: usize = 21;

/// `mov dx, 0x3f8; mov al, '!'; out dx, al; 1: hlt; jmp 1b`, in 32-bit protected mode.
const CODE: [u8; 12] = [
    0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee, 0xf4, 0xeb, 0xfd, 0x90, 0x90,
];
const LOAD_ADDRESS: u32 = 0x10_0000;

pub(super) fn measure(workplace: &Workplace) -> Result<Vec<Measurement>> {
    let folder = scratch_folder(workplace)?;
    let kernel = folder.path().join("first.elf");
    std::fs::write(&kernel, elf()).context("first.elf")?;
    let monitor = workplace.program("bulkhead-vmm")?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(round(&monitor, &kernel)? * 1e3);
    }
    Ok(vec![Measurement::new(
        "exec to first guest instruction",
        median(times),
        "ms",
    )])
}

fn round(monitor: &Path, kernel: &Path) -> Result<f64> {
    let mut command = Command::new(monitor);
    command
        .args(["--memory", "size=512M", "--serial", "tty", "--kernel"])
        .arg(kernel);
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("bulkhead-vmm")?;
    let mut byte = [0];
    let read = child
        .stdout
        .take()
        .context("console")?
        .read_exact(&mut byte);
    let took = start.elapsed().as_secs_f64();
    child.kill().context("stop bulkhead-vmm")?;
    child.wait().context("bulkhead-vmm")?;
    read.context("the guest wrote nothing")?;
    Ok(took)
}

/// An ELF image with one loadable segment and a PVH note (`xen/include/public/elfnote.h`, type 18) that names its
/// entry.
fn elf() -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    const NOTE: u64 = HEADERS;
    const NOTE_SIZE: u64 = 20;
    let code = NOTE + NOTE_SIZE;
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for half in [2u16, 62] {
        image.extend(half.to_le_bytes()); // an executable for x86-64
    }
    image.extend(1u32.to_le_bytes());
    for word in [u64::from(LOAD_ADDRESS), 64, 0] {
        image.extend(word.to_le_bytes()); // entry, program headers, section headers
    }
    image.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    let length = CODE.len() as u64;
    // Type, flags, then offset, virtual and physical address, size in the file and in memory, alignment.
    for (kind, offset, address, size) in [
        (1u32, code, u64::from(LOAD_ADDRESS), length),
        (4, NOTE, 0, NOTE_SIZE),
    ] {
        image.extend(kind.to_le_bytes());
        image.extend(5u32.to_le_bytes());
        for word in [offset, address, address, size, size, 4] {
            image.extend(word.to_le_bytes());
        }
    }
    for word in [4u32, 4, 18] {
        image.extend(word.to_le_bytes());
    }
    image.extend(b"Xen\0");
    image.extend(LOAD_ADDRESS.to_le_bytes());
    image.extend(CODE);
    image
}
