//! The ACPI tables, read by ACPICA's own disassembler and compiler.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::path::Path;
use std::process::Command;

use bulkhead_boot::{Layout, acpi};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

fn read(memory: &GuestMemoryMmap, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn u64_at(memory: &GuestMemoryMmap, at: u64) -> u64 {
    memory.read_obj(GuestAddress(at)).unwrap()
}

/// All tables, by name.
fn tables() -> Vec<(String, Vec<u8>)> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    let rsdp = acpi::write(&memory, &Layout::new(6 << 30), 2).unwrap();
    let table = |at: u64| {
        let len: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
        let bytes = read(&memory, at, len as usize);
        (String::from_utf8(bytes[..4].to_vec()).unwrap(), bytes)
    };
    let xsdt = table(u64_at(&memory, rsdp + 24));
    let entries = (36..xsdt.1.len()).step_by(8);
    let addresses: Vec<u64> = entries
        .map(|at| u64::from_le_bytes(xsdt.1[at..at + 8].try_into().unwrap()))
        .collect();
    let fadt = addresses[0];
    let mut all: Vec<_> = addresses.into_iter().map(table).collect();
    all.push(table(u64_at(&memory, fadt + 140)));
    all.push(xsdt);
    all
}

fn iasl(arguments: &[&str], folder: &Path) -> String {
    let output = Command::new("iasl")
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn acpica_finds_nothing_wrong_with_any_table() {
    if Command::new("iasl").arg("-v").output().is_err() {
        println!("skipped: iasl is not installed (package acpica-tools)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for (name, bytes) in tables() {
        let (binary, source) = (format!("{name}.dat"), format!("{name}.dsl"));
        std::fs::write(folder.path().join(&binary), bytes).unwrap();

        let told = iasl(&["-d", &binary], folder.path());
        assert!(
            !told.contains("Warning") && !told.contains("Error"),
            "{told}"
        );
        let text = std::fs::read_to_string(folder.path().join(&source)).unwrap();
        assert!(!text.contains("Invalid"), "{text}");
        if name == "DSDT" {
            for device in ["PCI0", "COM1", "ECAM", "PWRB", "ACPI0013", "_S5"] {
                assert!(text.contains(device), "{text}");
            }
            let told = iasl(&["-tc", &source], folder.path());
            assert!(told.contains("0 Errors, 0 Warnings"), "{told}");
        }
        names.push(name);
    }
    assert_eq!(names, ["FACP", "APIC", "MCFG", "DSDT", "XSDT"]);
}
