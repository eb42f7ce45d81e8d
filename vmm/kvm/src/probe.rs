//! Whether this machine's KVM runs guests, and whether it can run Linux.
//!
//! A KVM without hardware virtualization emulates ring 0, and its emulator lacks instructions that every kernel uses.
//! No version and no flag says so, so a guest of a few instructions runs them.

use std::fmt;
use std::io;

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use crate::vm::Vm;
use crate::{Error, guest_ram, refused};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The instructions that a kernel needs in ring 0 ran.
    RunsLinux,
    /// Guests run, but not this, the first of those instructions that did not.
    RunsNoLinux(String),
    /// Not even the first instruction ran.
    RunsNothing(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RunsLinux => f.write_str("KVM here can run Linux"),
            Self::RunsNoLinux(why) => write!(f, "KVM here cannot run Linux: {why}"),
            Self::RunsNothing(why) => write!(f, "KVM here runs no guest: {why}"),
        }
    }
}

/// What the guest runs in ring 0, one after the other, with a report on [`PORT`] after each.
const STEPS: [(&str, &[u8]); 4] = [
    ("`out`", &[]),
    ("`fwait`", &[0xdb, 0xe3, 0x9b]), // fninit; fwait
    (
        "`lock cmpxchg16b`",
        &[0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x25, 0x00, 0x00, 0x02, 0x00],
    ), // [0x2_0000]
    ("`int3`", &[0xcc]),
];
const PORT: u8 = 0xf4;

const PAGE_TABLES: u64 = 0x1000; // PML4, PDPT, PD, one page each
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const HANDLER: u64 = 0x6000;
const CODE: u64 = 0x1_0000;
const STACK: u64 = 0x3_0000;
const MEMORY_SIZE: u64 = 2 << 20;

/// Makes a VM as the monitor does, and runs a guest of a few instructions on one vCPU of it.
///
/// # Errors
/// When `/dev/kvm` cannot be opened, lacks a feature that the monitor requires, or refuses a request.
pub fn probe() -> Result<Verdict, Error> {
    let memory = guest_ram(&[(0, MEMORY_SIZE)], false)?;
    load(&memory).map_err(|error| Error::Ram("write", io::Error::other(error)))?;
    let vm = Vm::new(memory)?;
    let mut vcpu = vm.create_bare_vcpu()?;
    enter_long_mode(&vcpu)?;
    run(&mut vcpu)
}

/// Runs the steps and names the first one that is not reported.
fn run(vcpu: &mut VcpuFd) -> Result<Verdict, Error> {
    for (step, (name, _)) in STEPS.iter().enumerate() {
        match vcpu.run().map_err(refused("to run a vCPU"))? {
            VcpuExit::IoOut(port, [reported])
                if port == u16::from(PORT) && usize::from(*reported) == step => {}
            exit => {
                let why = format!("{name} in ring 0 ends in {exit:?}");
                return Ok(match step {
                    0 => Verdict::RunsNothing(why),
                    _ => Verdict::RunsNoLinux(why),
                });
            }
        }
    }
    Ok(Verdict::RunsLinux)
}

/// Identity-mapped page tables, a flat GDT, an IDT with a breakpoint handler, and the code.
fn load(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    let put = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at));
    put(PAGE_TABLES, (PAGE_TABLES + 0x1000) | 0b11)?;
    put(PAGE_TABLES + 0x1000, (PAGE_TABLES + 0x2000) | 0b11)?;
    put(PAGE_TABLES + 0x2000, 0b1000_0011)?; // one 2 MiB page
    put(GDT + 8, 0x00af_9a00_0000_ffff)?;
    put(GDT + 16, 0x00cf_9200_0000_ffff)?;
    // Vector 3: present interrupt gate to 0x08:HANDLER, which fits 16 bits.
    put(IDT + 3 * 16, HANDLER | 0x08 << 16 | 0x8e00 << 32)?;
    memory.write_slice(&[0x48, 0xcf], GuestAddress(HANDLER))?; // iretq

    let mut code = GuestAddress(CODE);
    for (step, (_, instructions)) in (0u8..).zip(STEPS) {
        let report = [0xb0, step, 0xe6, PORT]; // mov al, step; out PORT, al
        for bytes in [instructions, &report] {
            memory.write_slice(bytes, code)?;
            code = code.unchecked_add(bytes.len() as u64);
        }
    }
    Ok(())
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), Error> {
    let mut sregs = vcpu.get_sregs().map_err(refused("to read registers"))?;
    let code = kvm_segment {
        limit: 0xffff_ffff,
        selector: 8,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        limit: 0xffff_ffff,
        selector: 16,
        type_: 3,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.gdt = kvm_dtable {
        base: GDT,
        limit: 23,
        ..Default::default()
    };
    sregs.idt = kvm_dtable {
        base: IDT,
        limit: 4 * 16 - 1,
        ..Default::default()
    };
    sregs.cr0 = 0x8000_0033; // PG, NE, ET, MP, PE
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = 0x620; // OSXMMEXCPT, OSFXSR, PAE
    sregs.efer = 0x500; // LMA, LME
    vcpu.set_sregs(&sregs)
        .map_err(refused("to set registers"))?;
    let registers = kvm_regs {
        rip: CODE,
        rsp: STACK,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&registers)
        .map_err(refused("to set registers"))
}
