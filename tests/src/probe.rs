//! Whether this machine's KVM can run Linux.
//!
//! A KVM without hardware virtualization emulates ring 0, and its emulator lacks instructions that every kernel
//! uses. A version or a flag would not tell, so this runs them.

use std::fmt;

use anyhow::{Context, Result, bail};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Everything a kernel needs in ring 0 ran.
    CanRunLinux,
    /// The first thing that did not.
    CannotRunLinux(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CanRunLinux => f.write_str("KVM here can run Linux"),
            Self::CannotRunLinux(why) => write!(f, "KVM here cannot run Linux: {why}"),
        }
    }
}

/// What the guest runs in ring 0, one after the other, with a report on [`PORT`] after each.
const STEPS: [(&str, &[u8]); 4] = [
    ("an `out`", &[]),
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
const MEMORY_SIZE: usize = 2 << 20;

/// Runs the probe. An error here is not a finding: it means that /dev/kvm could not be asked at all.
pub fn probe() -> Result<Verdict> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return Ok(Verdict::CannotRunLinux(format!("/dev/kvm: {error}"))),
    };
    let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)])
        .context("guest memory")?;
    let region = kvm_userspace_memory_region {
        memory_size: MEMORY_SIZE as u64,
        userspace_addr: memory
            .get_host_address(GuestAddress(0))
            .context("guest memory")? as u64,
        ..Default::default()
    };
    // SAFETY: the region is `memory`'s whole mapping, which outlives `vm`, and nothing else refers into it.
    unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
    load(&memory)?;
    let mut vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
    enter_long_mode(&vcpu)?;
    run(&mut vcpu)
}

/// Runs the steps and names the first one that is not reported.
fn run(vcpu: &mut VcpuFd) -> Result<Verdict> {
    for (step, (name, _)) in STEPS.iter().enumerate() {
        let exit = vcpu.run();
        match exit {
            Ok(VcpuExit::IoOut(port, [reported]))
                if port == u16::from(PORT) && usize::from(*reported) == step => {}
            Ok(exit) => {
                return Ok(Verdict::CannotRunLinux(format!(
                    "{name} in ring 0 ends in {exit:?}"
                )));
            }
            Err(error) => bail!("KVM_RUN: {error}"),
        }
    }
    Ok(Verdict::CanRunLinux)
}

/// Identity-mapped page tables, a flat GDT, an IDT with a breakpoint handler, and the code.
fn load(memory: &GuestMemoryMmap<()>) -> Result<()> {
    let put = |at: u64, value: u64| {
        memory
            .write_obj(value, GuestAddress(at))
            .context("guest memory")
    };
    put(PAGE_TABLES, (PAGE_TABLES + 0x1000) | 0b11)?;
    put(PAGE_TABLES + 0x1000, (PAGE_TABLES + 0x2000) | 0b11)?;
    put(PAGE_TABLES + 0x2000, 0b1000_0011)?; // one 2 MiB page
    put(GDT + 8, 0x00af_9a00_0000_ffff)?;
    put(GDT + 16, 0x00cf_9200_0000_ffff)?;
    // Vector 3: present interrupt gate to 0x08:HANDLER, which fits 16 bits.
    put(IDT + 3 * 16, HANDLER | 0x08 << 16 | 0x8e00 << 32)?;
    memory
        .write_slice(&[0x48, 0xcf], GuestAddress(HANDLER))
        .context("guest memory")?; // iretq

    let mut code = GuestAddress(CODE);
    for (step, (_, instructions)) in (0u8..).zip(STEPS) {
        let report = [0xb0, step, 0xe6, PORT]; // mov al, step; out PORT, al
        for bytes in [instructions, &report] {
            memory.write_slice(bytes, code).context("guest memory")?;
            code = code.unchecked_add(bytes.len() as u64);
        }
    }
    Ok(())
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<()> {
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
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
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let registers = kvm_regs {
        rip: CODE,
        rsp: STACK,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&registers).context("KVM_SET_REGS")
}
