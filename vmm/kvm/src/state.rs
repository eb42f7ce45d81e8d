//! The registers with which a vCPU starts.

use bulkhead_boot::Entry;
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::{Error, refused};

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Memory type range registers are enabled, and the type of other memory is write-back.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const DELIVERY_MODE_NMI: u32 = 4 << 8;
const DELIVERY_MODE_EXTINT: u32 = 7 << 8;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS always reads as one; interrupts are off.
const RFLAGS_RESERVED: u64 = 2;

/// Sets the registers with which the first vCPU enters the kernel.
pub(crate) fn set_entry(vcpu: &VcpuFd, entry: &Entry) -> Result<(), Error> {
    let mut sregs = vcpu.get_sregs().map_err(refused("to read registers"))?;
    let mut regs = kvm_regs {
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    match *entry {
        Entry::Long {
            entry,
            boot_params,
            page_table,
            gdt,
        } => {
            set_segments(&mut sregs, code_segment(true));
            sregs.gdt.base = gdt.0;
            sregs.gdt.limit = gdt.1;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = page_table;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
            regs.rip = entry;
            regs.rsi = boot_params;
        }
        Entry::Pvh { entry, start_info } => {
            set_segments(&mut sregs, code_segment(false));
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
            regs.rip = entry.into();
            regs.rbx = start_info.into();
        }
    }
    vcpu.set_sregs(&sregs)
        .map_err(refused("system registers"))?;
    vcpu.set_regs(&regs).map_err(refused("registers"))
}

fn set_segments(sregs: &mut kvm_sregs, code: kvm_segment) {
    let data = kvm_segment {
        selector: 0x18,
        type_: 0x3, // data, writable, accessed
        l: 0,
        db: 1,
        ..code
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        selector: 0x20,
        limit: 0x67,
        type_: 0xb, // 32-bit or 64-bit TSS, busy
        present: 1,
        ..Default::default()
    };
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
}

/// A flat code segment, of 64 or 32 bits.
fn code_segment(long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 0x10,
        type_: 0xb, // code, readable, accessed
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// Sets the registers that firmware sets on every vCPU.
pub(crate) fn set_common(vcpu: &VcpuFd) -> Result<(), Error> {
    let msrs = [
        (MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS),
        (MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ]
    .map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&msrs).map_err(|_| Error::Missing("room for MSRs"))?;
    vcpu.set_msrs(&msrs).map_err(refused("MSRs"))?;

    let mut lapic = vcpu
        .get_lapic()
        .map_err(refused("to read the local APIC"))?;
    for (register, value) in [
        (APIC_LVT_LINT0, DELIVERY_MODE_EXTINT),
        (APIC_LVT_LINT1, DELIVERY_MODE_NMI),
    ] {
        for (place, byte) in lapic
            .regs
            .iter_mut()
            .skip(register)
            .zip(value.to_le_bytes())
        {
            *place = byte as std::ffi::c_char;
        }
    }
    vcpu.set_lapic(&lapic).map_err(refused("the local APIC"))
}
