//! The machine's devices, in the order of their dependencies (see [`Lifecycle`]), and what it takes to add and remove
//! one.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bulkhead_boot::Layout;
use bulkhead_boot::layout::{
    COM1_GSI, COM1_PORTS, ECAM, PCI_32, PCI_CONFIG_PORTS, POWER_BUTTON_GSI, POWER_PORTS,
};
use bulkhead_devices::pci::{Bdf, PciRoot, Window};
use bulkhead_devices::vhost_user::{BackendEvent, Frontend, FrontendConfig, FrontendError, Host};
use bulkhead_devices::virtio::VirtioPci;
use bulkhead_devices::{Bus, BusDevice, Lifecycle, PowerButton, Serial};
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
    power_button: Arc<PowerButton>,
    hypervisor: Arc<Kvm>,
    memory: GuestMemoryMmap,
}

struct Listed {
    device: Arc<dyn Lifecycle>,
    /// Its address, if it is a function on the PCI bus.
    bdf: Option<Bdf>,
}

impl Devices {
    /// The devices that every machine has: the PCI bus, without functions but the host bridge, the power management
    /// registers and the power button.
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
        let registers = Arc::new(PowerRegisters(buses.stop.clone()));
        insert(&buses.ports, POWER_PORTS, registers.clone())?;
        let line = interrupt_line(&interrupts, POWER_BUTTON_GSI, "the power button")?;
        let power_button = Arc::new(PowerButton::new(line));
        let mut devices = Self {
            list: Vec::new(),
            root: root.clone(),
            power_button: power_button.clone(),
            hypervisor: Arc::new(Kvm {
                interrupts,
                doorbells: vm.doorbells(),
            }),
            memory: vm.memory().clone(),
        };
        devices.push(root, None);
        devices.push(registers, None);
        devices.push(power_button, None);
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
        let line = interrupt_line(&self.hypervisor.interrupts, COM1_GSI, "the serial port")?;
        let serial = Serial::new(line, console.writer());
        let serial = Arc::new(serial.context("cannot make an eventfd for the serial port")?);
        insert(ports, COM1_PORTS, serial.clone())?;
        self.push(serial.clone(), None);
        Ok(serial)
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

    /// Presses the power button.
    pub(crate) fn press_power_button(&self) {
        self.power_button.press();
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

/// An eventfd that raises an edge on a pin of the I/O APIC.
fn interrupt_line(interrupts: &Interrupts, gsi: u32, of: &str) -> anyhow::Result<EventFd> {
    let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
    let line = line.with_context(|| format!("cannot make an eventfd for {of}"))?;
    interrupts.bind_pin(gsi, &line)?;
    Ok(line)
}

fn insert<T: Into<u64>>(
    bus: &Bus,
    (base, len): (T, T),
    device: Arc<dyn BusDevice>,
) -> anyhow::Result<()> {
    Ok(bus.insert(base.into(), len.into(), device)?)
}
