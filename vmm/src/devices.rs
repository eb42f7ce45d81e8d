//! The machine's devices, in the order of their dependencies (see [`Lifecycle`]), and what it takes to add and remove
//! one.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bulkhead_boot::Layout;
use bulkhead_boot::layout::{COM1_GSI, COM1_PORTS, ECAM, PCI_32, PCI_CONFIG_PORTS, POWER_PORTS};
use bulkhead_devices::pci::{Bdf, PciRoot, Window};
use bulkhead_devices::vhost_user::{BackendEvent, Frontend, FrontendConfig, FrontendError, Host};
use bulkhead_devices::virtio::VirtioPci;
use bulkhead_devices::{Bus, BusDevice, Lifecycle, Serial};
use bulkhead_kvm::{Interrupts, Vm};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::backend_warnings::BackendWarnings;
use crate::broker::Broker;
use crate::buses::Buses;
use crate::confine;
use crate::console::Console;
use crate::kvm::Kvm;
use crate::power::PowerRegisters;

pub(crate) struct Devices {
    list: Vec<Listed>,
    root: Arc<PciRoot>,
    hypervisor: Arc<Kvm>,
    memory: GuestMemoryMmap,
}

struct Listed {
    device: Arc<dyn Lifecycle>,
    /// Its address, if it is a function on the PCI bus.
    bdf: Option<Bdf>,
}

impl Devices {
    /// The PCI bus, without functions but the host bridge.
    pub(crate) fn new(
        vm: &Vm,
        layout: &Layout,
        buses: &Buses,
        interrupts: Arc<Interrupts>,
    ) -> anyhow::Result<Self> {
        let windows = [layout.pci_64(), PCI_32].map(|(base, len)| Window { base, len });
        let root = PciRoot::new(&windows)?;
        insert(&buses.ports, PCI_CONFIG_PORTS, root.config_ports())?;
        insert(&buses.memory, ECAM, root.ecam())?;
        for (window, device) in root.mmio() {
            insert(&buses.memory, (window.base, window.len), device)?;
        }
        let mut devices = Self {
            list: Vec::new(),
            root: root.clone(),
            hypervisor: Arc::new(Kvm {
                interrupts,
                doorbells: vm.doorbells(),
            }),
            memory: vm.memory().clone(),
        };
        devices.push(root, None);
        Ok(devices)
    }

    fn push(&mut self, device: Arc<dyn Lifecycle>, bdf: Option<Bdf>) {
        self.list.push(Listed { device, bdf });
    }

    /// Adds the serial port, whose output `console` takes.
    pub(crate) fn add_serial(
        &mut self,
        console: &Console,
        ports: &Bus,
    ) -> anyhow::Result<Arc<Serial>> {
        const EVENTFD: &str = "cannot make an eventfd for the serial port";
        let irq = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).context(EVENTFD)?;
        self.hypervisor.interrupts.bind_pin(COM1_GSI, &irq)?;
        let serial = Arc::new(Serial::new(irq, console.writer()).context(EVENTFD)?);
        insert(ports, COM1_PORTS, serial.clone())?;
        self.push(serial.clone(), None);
        Ok(serial)
    }

    /// Adds the power management registers.
    pub(crate) fn add_power(&mut self, buses: &Buses) -> anyhow::Result<()> {
        let registers = Arc::new(PowerRegisters(buses.stop.clone()));
        insert(&buses.ports, POWER_PORTS, registers.clone())?;
        self.push(registers, None);
        Ok(())
    }

    /// Connects to a device's backend and puts the device on the PCI bus.
    pub(crate) fn add_vhost_user(
        &mut self,
        config: FrontendConfig,
        warnings: &Arc<BackendWarnings>,
        broker: &Broker,
    ) -> anyhow::Result<()> {
        let connector = broker.connector(&config.socket);
        let connector =
            connector.map_err(|error| FrontendError::connecting(config.socket.clone(), error))?;
        let warnings = warnings.clone();
        let host = Host {
            connector: Box::new(connector),
            observer: Box::new(move |socket: &Path, event: BackendEvent<'_>| {
                warnings.add(socket, &event);
            }),
            enter_thread: Box::new(confine::enter_reconnect_thread),
        };
        let frontend = Frontend::connect(config, self.memory.clone(), host)?;
        let (hypervisor, memory) = (self.hypervisor.clone(), self.memory.clone());
        let function = VirtioPci::new(frontend.clone(), hypervisor, memory)
            .context("cannot make the PCI function")?;
        let bdf = self.root.add_function(function.clone())?;
        self.push(frontend, None);
        self.push(function, Some(bdf));
        Ok(())
    }

    /// Activates the devices, before the first vCPU runs.
    pub(crate) fn activate(&self) -> anyhow::Result<()> {
        for Listed { device, .. } in &self.list {
            device.activate().context("cannot start a device")?;
        }
        Ok(())
    }

    /// Pauses the devices. No vCPU runs.
    pub(crate) fn pause(&self) {
        self.in_reverse(|device| device.pause());
    }

    /// Resumes the devices, before the vCPUs run again.
    pub(crate) fn resume(&self) {
        for Listed { device, .. } in &self.list {
            device.resume();
        }
    }

    /// Resets the devices. No vCPU runs.
    pub(crate) fn reset(&self) {
        self.in_reverse(|device| device.reset());
    }

    /// Removes the devices. No vCPU runs any more.
    pub(crate) fn remove(&mut self) {
        while let Some(Listed { device, bdf }) = self.list.pop() {
            device.remove();
            bdf.and_then(|bdf| self.root.remove_function(bdf));
        }
    }

    fn in_reverse(&self, call: impl Fn(&dyn Lifecycle)) {
        for Listed { device, .. } in self.list.iter().rev() {
            call(&**device);
        }
    }
}

fn insert<T: Into<u64>>(
    bus: &Bus,
    (base, len): (T, T),
    device: Arc<dyn BusDevice>,
) -> anyhow::Result<()> {
    Ok(bus.insert(base.into(), len.into(), device)?)
}
