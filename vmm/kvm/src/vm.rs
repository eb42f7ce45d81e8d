//! The VM: its RAM, its interrupt controllers, and its vCPUs before they run.

use std::io;
use std::sync::Arc;

use bulkhead_boot::Entry;
use kvm_bindings::{
    CpuId, KVM_CAP_IOEVENTFD_ANY_LENGTH, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::cpuid::{self, Topology};
use crate::state;
use crate::{Doorbells, Error, Interrupts, refused};

/// Three pages that KVM uses on processors without real mode. They are below 4 GiB, where neither RAM nor a device is.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// The features of KVM that this monitor requires.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "user memory"),
    (Cap::Irqchip, "in-kernel interrupt controllers"),
    (Cap::IrqRouting, "interrupt routing"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::ImmediateExit, "immediate_exit"),
];

/// A virtual machine with its RAM and interrupt controllers.
pub struct Vm {
    fd: Arc<VmFd>,
    supported: CpuId,
    max_vcpus: usize,
    tsc_deadline: bool,
    memory: GuestMemoryMmap,
}

/// A vCPU that has been set up and does not run yet.
pub struct Vcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) index: u8,
    /// The guest accesses it while the vCPU runs, so it stays mapped as long as the vCPU exists.
    _memory: GuestMemoryMmap,
}

impl Vm {
    /// A VM with this RAM and without vCPUs.
    ///
    /// # Errors
    /// When `/dev/kvm` cannot be opened, lacks a feature, or refuses a request.
    pub fn new(memory: GuestMemoryMmap) -> Result<Self, Error> {
        let kvm = Kvm::new().map_err(|e| Error::Open(io::Error::from(e)))?;
        if kvm.get_api_version() != 12 {
            return Err(Error::Missing("API version 12"));
        }
        if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(Error::Missing(name));
        }
        if kvm.check_extension_raw(KVM_CAP_IOEVENTFD_ANY_LENGTH.into()) == 0 {
            return Err(Error::Missing("ioeventfd for writes of any length"));
        }
        let fd = kvm.create_vm().map_err(refused("a machine"))?;
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(refused("the identity map"))?;
        fd.set_tss_address(TSS_ADDRESS)
            .map_err(refused("the TSS"))?;
        fd.create_irq_chip()
            .map_err(refused("interrupt controllers"))?;
        let vm = Self {
            fd: Arc::new(fd),
            supported: kvm
                .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
                .map_err(refused("to list CPU features"))?,
            max_vcpus: kvm.get_max_vcpus(),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            memory,
        };
        vm.map_memory()?;
        Ok(vm)
    }

    fn map_memory(&self) -> Result<(), Error> {
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is a mapping of `memory_size` bytes at `userspace_addr`. Only running vCPUs access it,
            // and each of them owns a reference to it.
            unsafe { self.fd.set_user_memory_region(slot) }.map_err(refused("guest memory"))?;
        }
        Ok(())
    }

    /// A vCPU as KVM makes it.
    pub(crate) fn create_bare_vcpu(&self) -> Result<VcpuFd, Error> {
        self.fd.create_vcpu(0).map_err(refused("a vCPU"))
    }

    /// The guest's RAM.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The VM's interrupt routes. This is called once, since it replaces all routes.
    ///
    /// # Errors
    /// When KVM refuses the routes of the I/O APIC.
    pub fn interrupts(&self) -> Result<Arc<Interrupts>, Error> {
        Interrupts::new(self.fd.clone()).map(Arc::new)
    }

    /// The VM's doorbells.
    #[must_use]
    pub fn doorbells(&self) -> Doorbells {
        Doorbells::new(self.fd.clone())
    }

    /// Creates `count` vCPUs, with APIC identifiers from 0. The first enters the kernel as `entry` says, and the others
    /// wait for a start-up IPI.
    ///
    /// # Errors
    /// When KVM supports fewer, or refuses.
    pub fn create_vcpus(&self, count: u8, entry: &Entry) -> Result<Vec<Vcpu>, Error> {
        if usize::from(count) > self.max_vcpus {
            return Err(Error::TooManyVcpus(self.max_vcpus));
        }
        (0..count)
            .map(|index| {
                let fd = self
                    .fd
                    .create_vcpu(index.into())
                    .map_err(refused("a vCPU"))?;
                let topology = Topology {
                    index,
                    count,
                    tsc_khz: fd.get_tsc_khz().ok().filter(|khz| *khz > 0),
                    tsc_deadline: self.tsc_deadline,
                };
                let cpuid = cpuid::for_vcpu(&self.supported, &topology)?;
                fd.set_cpuid2(&cpuid).map_err(refused("CPU features"))?;
                state::set_common(&fd)?;
                if index == 0 {
                    state::set_entry(&fd, entry)?;
                }
                let memory = self.memory.clone();
                Ok(Vcpu {
                    fd,
                    index,
                    _memory: memory,
                })
            })
            .collect()
    }
}
