//! The transport: a virtio device as a PCI function (virtio 1.2 §4.1), modern only, with MSI-X and without legacy
//! interrupts.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::interrupts::Interrupts;
use super::layout::{
    BAR, COMMON, DEVICE, ISR, MAX_QUEUES, NOTIFY, NOTIFY_MULTIPLIER, Offsets, PENDING, TABLE,
    config_space,
};
use super::registers::{Action, Registers};
use super::{ActiveQueue, DeviceEvents, VirtioDevice};
use crate::hypervisor::Hypervisor;
use crate::lifecycle::Lifecycle;
use crate::pci::{Bar, ConfigSpace, Msix, PciFunction};

/// A virtio device on the PCI bus.
pub struct VirtioPci {
    device: Arc<dyn VirtioDevice>,
    hypervisor: Arc<dyn Hypervisor>,
    memory: GuestMemoryMmap,
    config: Mutex<ConfigSpace>,
    offsets: Offsets,
    interrupts: Arc<Interrupts>,
    registers: Mutex<Registers>,
    /// Each queue's kick eventfd, which stays the same for the device's whole life.
    kicks: Vec<Arc<EventFd>>,
    /// The doorbells that are bound in the hypervisor: address and kick eventfd.
    doorbells: Mutex<Vec<(u64, Arc<EventFd>)>>,
}

impl VirtioPci {
    /// Makes `device` a PCI function, whose queues are in `memory`.
    ///
    /// # Errors
    /// When there are not enough descriptors or vectors, or the device has more queues than the transport (1024).
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        hypervisor: Arc<dyn Hypervisor>,
        memory: GuestMemoryMmap,
    ) -> io::Result<Arc<Self>> {
        let queues = device.queue_max_sizes().len();
        if queues > MAX_QUEUES {
            let message = format!("{queues} queues are more than {MAX_QUEUES}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        // One vector per queue and one for the configuration.
        let msix = Msix::new(&*hypervisor, queues as u16 + 1)?;
        let (config, offsets) =
            config_space(device.device_type(), queues, &msix).map_err(io::Error::other)?;
        let interrupts = Arc::new(Interrupts::new(msix)?);
        let kick = |_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new);
        device.attach(interrupts.clone());
        let registers = Registers::new(device.features(), device.queue_max_sizes());
        Ok(Arc::new(Self {
            hypervisor,
            memory,
            config: Mutex::new(config),
            offsets,
            interrupts,
            registers: Mutex::new(registers),
            kicks: (0..queues).map(kick).collect::<io::Result<_>>()?,
            doorbells: Mutex::new(Vec::new()),
            device,
        }))
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The registers, in which a reset is completed if it can be.
    fn current_registers(&self) -> MutexGuard<'_, Registers> {
        let mut registers = self.registers();
        self.try_complete_reset(&mut registers);
        registers
    }

    /// Completes a reset once the device accesses the queues no more. Until then the driver reads a status other than
    /// 0, and waits (virtio 1.2 §4.1.4.3.2).
    fn try_complete_reset(&self, registers: &mut Registers) {
        if registers.is_resetting() && self.device.is_stopped() {
            self.interrupts.reset();
            registers.reset(self.device.features());
        }
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        let mut registers = self.current_registers();
        match registers.write(&self.interrupts, offset, data) {
            Action::Nothing => {}
            Action::Activate => match self.active_queues(&registers) {
                Some(queues) => self.device.activate(registers.features(), queues),
                None => self.interrupts.needs_reset(),
            },
            Action::Reset => self.reset_device(&mut registers),
            Action::Vector(queue) => {
                let vector = registers.queues().get(usize::from(queue));
                let call = vector.map(|queue| self.interrupts.vector(queue.vector));
                if let (Some(call), false) = (call, self.interrupts.is_reset_needed()) {
                    self.device.set_call(queue, call);
                }
            }
        }
    }

    fn reset_device(&self, registers: &mut Registers) {
        if registers.is_live() {
            self.device.reset();
        }
        registers.begin_reset();
        self.try_complete_reset(registers);
    }

    /// The queues that the driver has enabled. `None` if one of them does not lie in RAM.
    fn active_queues(&self, registers: &Registers) -> Option<Vec<ActiveQueue>> {
        let enabled = registers.queues().iter().zip(&self.kicks).enumerate();
        enabled
            .filter(|(_, (queue, _))| queue.enabled)
            .map(|(index, (queue, kick))| {
                queue.is_sound(&self.memory).then(|| ActiveQueue {
                    // Below MAX_QUEUES.
                    index: index as u16,
                    size: queue.size,
                    descriptors: queue.descriptors,
                    available: queue.available,
                    used: queue.used,
                    kick: kick.clone(),
                    call: self.interrupts.vector(queue.vector),
                })
            })
            .collect()
    }

    /// The BAR, offset and length in the PCI configuration access capability (§4.1.4.9).
    fn pci_cfg(&self) -> Option<(usize, u64, usize)> {
        let mut bytes = [0; 12];
        self.config().read(self.offsets.pci_cfg, &mut bytes);
        let [bar, _, _, _, o0, o1, o2, o3, len @ ..] = bytes;
        let offset = u32::from_le_bytes([o0, o1, o2, o3]);
        let len = u32::from_le_bytes(len);
        matches!(len, 1 | 2 | 4).then_some((bar.into(), offset.into(), len as usize))
    }

    /// Before the driver reads `pci_cfg_data`, copies the selected bytes of the BAR into it.
    fn load_pci_cfg(&self) {
        if let Some((bar, offset, len)) = self.pci_cfg() {
            let mut data = [0; 4];
            if let Some(data) = data.get_mut(..len) {
                self.read_bar(bar, offset, data);
            }
            let at = usize::from(self.offsets.pci_cfg_data());
            self.config().put(at, &data);
        }
    }

    /// After the driver has written `pci_cfg_data`, writes it to the selected bytes of the BAR.
    fn store_pci_cfg(&self) {
        if let Some((bar, offset, len)) = self.pci_cfg() {
            let mut data = [0; 4];
            self.config().read(self.offsets.pci_cfg_data(), &mut data);
            self.write_bar(bar, offset, data.get(..len).unwrap_or_default());
        }
    }

    fn touches(register: u16, len: usize, offset: u16, data: &[u8]) -> bool {
        let (register, offset) = (usize::from(register), usize::from(offset));
        offset < register + len && register < offset + data.len()
    }
}

impl PciFunction for VirtioPci {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        if Self::touches(self.offsets.pci_cfg_data(), 4, offset, data) {
            self.load_pci_cfg();
        }
        self.config().read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> bool {
        let decode = self.config().write(offset, data);
        if Self::touches(self.offsets.msix_control, 2, offset, data) {
            let mut control = [0; 2];
            self.config().read(self.offsets.msix_control, &mut control);
            let control = u16::from_le_bytes(control);
            self.interrupts.msix.set_control(control);
        }
        if Self::touches(self.offsets.pci_cfg_data(), 4, offset, data) {
            self.store_pci_cfg();
        }
        decode
    }

    fn bars(&self) -> Vec<Bar> {
        self.config().bars()
    }

    fn bar_mapped(&self, _index: usize, address: Option<u64>) {
        let mut doorbells = self
            .doorbells
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (address, kick) in doorbells.drain(..) {
            // It is bound, so this fails only if the VM itself is gone.
            let _ = self.hypervisor.unbind_doorbell(address, &kick);
        }
        let Some(bar) = address else { return };
        let addresses = (bar + NOTIFY.start..).step_by(NOTIFY_MULTIPLIER as usize);
        for (address, kick) in addresses.zip(&self.kicks) {
            // Without a doorbell the write reaches `write_bar`, which is slower and has the same effect.
            if self.hypervisor.bind_doorbell(address, kick).is_ok() {
                doorbells.push((address, kick.clone()));
            }
        }
    }

    fn read_bar(&self, index: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if index != BAR {
            return;
        }
        match part(offset) {
            Some((Part::Common, at)) => self.current_registers().read(&self.interrupts, at, data),
            Some((Part::Isr, 0)) => {
                if let Some(byte) = data.first_mut() {
                    *byte = self.interrupts.take_isr();
                }
            }
            Some((Part::Device, at)) => self.device.read_config(at, data),
            Some((Part::Pending, at)) => self.interrupts.msix.read_pending(at, data),
            Some((Part::Table, at)) => self.interrupts.msix.read_table(at, data),
            _ => {}
        }
    }

    fn write_bar(&self, index: usize, offset: u64, data: &[u8]) {
        if index != BAR {
            return;
        }
        match part(offset) {
            Some((Part::Common, at)) => self.write_common(at, data),
            Some((Part::Device, at)) => self.device.write_config(at, data),
            Some((Part::Notify, at)) => {
                if let Ok(queue) = u16::try_from(at / NOTIFY_MULTIPLIER) {
                    self.device.notify(queue);
                }
            }
            Some((Part::Table, at)) => self.interrupts.msix.write_table(at, data),
            _ => {}
        }
    }
}

impl Lifecycle for VirtioPci {
    /// The driver's reset, and with it that of configuration space and MSI-X. The bus then gives the BAR its first
    /// address again.
    fn reset(&self) {
        self.reset_device(&mut self.registers());
        self.interrupts.msix.reset();
        self.config().reset();
    }

    /// Takes interrupts and doorbells away.
    fn remove(&self) {
        self.interrupts.msix.reset();
        self.bar_mapped(BAR, None);
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.bar_mapped(BAR, None);
    }
}

#[derive(Clone, Copy)]
enum Part {
    Common,
    Isr,
    Device,
    Notify,
    Pending,
    Table,
}

/// The part of the BAR that `offset` is in, and the offset in that part.
fn part(offset: u64) -> Option<(Part, u64)> {
    const PARTS: [(Range<u64>, Part); 6] = [
        (COMMON, Part::Common),
        (ISR, Part::Isr),
        (DEVICE, Part::Device),
        (NOTIFY, Part::Notify),
        (PENDING, Part::Pending),
        (TABLE, Part::Table),
    ];
    let found = PARTS.iter().find(|(range, _)| range.contains(&offset));
    found.map(|(range, part)| (*part, offset - range.start))
}

#[cfg(test)]
#[path = "pci_tests.rs"]
mod tests;
