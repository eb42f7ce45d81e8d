//! The machine: the one list of its devices, and the guest's memory as it is at the first instruction.

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use bulkhead_boot::layout::{COM1_GSI, COM1_PORTS, ECAM, PCI_32, PCI_CONFIG_PORTS, POWER_PORTS};
use bulkhead_boot::{Entry, Initramfs, Kernel, Layout, acpi, reset_vector};
use bulkhead_devices::pci::{PciRoot, Window};
use bulkhead_devices::vhost_user::{BackendEvent, Frontend, FrontendError};
use bulkhead_devices::virtio::VirtioPci;
use bulkhead_devices::{Bus, BusDevice, Serial};
use bulkhead_kvm::{BootState, Interrupts, Vcpu, Vm, guest_ram};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::broker::Broker;
use crate::buses::Buses;
use crate::config::{PayloadConfig, VmConfig};
use crate::console::Console;
use crate::host;
use crate::kvm::Kvm;
use crate::reports::Reports;
use crate::stop::Stop;

/// A machine that is ready to run.
pub(crate) struct Machine {
    pub(crate) buses: Arc<Buses>,
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) console: Option<(Console, Arc<Serial>)>,
    pub(crate) frontends: Vec<Arc<Frontend>>,
    pub(crate) reports: Arc<Reports>,
    // The vCPUs end before their machine does.
    _vm: Vm,
}

impl Machine {
    /// Builds what `config` describes.
    pub(crate) fn new(
        config: &VmConfig,
        console: Option<Console>,
        broker: &Broker,
    ) -> anyhow::Result<Self> {
        let layout = Layout::new(config.memory.size);
        let vm = Vm::new(allocate(config, &layout)?)?;
        let interrupts = vm.interrupts()?;
        let buses = {
            let stop = Stop::new().context("cannot make an eventfd for the guest's end")?;
            Arc::new(Buses::new(Arc::new(stop)))
        };

        let console = add_serial(console, &buses.ports, &interrupts)?;
        add_power(&buses)?;
        let reports =
            Arc::new(Reports::new().context("cannot make an eventfd for reports of backends")?);
        let frontends = add_pci(&vm, config, &layout, &buses, (interrupts, &reports), broker)?;

        let cpus = u8::try_from(config.cpus.boot_vcpus).context("--cpus")?;
        reset_vector::write(vm.memory())?;
        let rsdp = acpi::write(vm.memory(), &layout, cpus)?;
        let boot = load(&vm, &layout, &config.payload, rsdp, broker)?;
        let vcpus = vm.create_vcpus(cpus, &boot)?;
        Ok(Self {
            buses,
            vcpus,
            console,
            frontends,
            reports,
            _vm: vm,
        })
    }

    /// Takes the terminal, if the serial port is on one, out of line mode.
    pub(crate) fn make_console_raw(&mut self) {
        if let Some((console, _)) = &mut self.console {
            console.make_raw();
        }
    }

    /// Waits for the guest's last words to be written.
    pub(crate) fn finish(&self) {
        if let Some((console, _)) = &self.console {
            console.finish();
        }
    }
}

/// What is no socket is said to be none while paths can be looked at.
pub(crate) fn check_sockets(config: &VmConfig) -> anyhow::Result<()> {
    for (flag, device) in config.devices() {
        let found = std::fs::metadata(&device.socket);
        if found.is_ok_and(|file| !file.file_type().is_socket()) {
            bail!("{flag}: {}: not a socket", device.socket.display());
        }
    }
    Ok(())
}

fn allocate(config: &VmConfig, layout: &Layout) -> anyhow::Result<vm_memory::GuestMemoryMmap> {
    let host = host::memory()?;
    if config.memory.size > host {
        bail!(
            "--memory: the guest is to have {} MiB, and the host has {} MiB",
            config.memory.size >> 20,
            host >> 20
        );
    }
    Ok(guest_ram(&layout.ram(), config.memory.hugepages)?)
}

fn load(
    vm: &Vm,
    layout: &Layout,
    payload: &PayloadConfig,
    rsdp: u64,
    broker: &Broker,
) -> anyhow::Result<BootState> {
    let kernel_path = payload.kernel.display();
    let mut file = open("kernel", &payload.kernel, broker)?;
    let kernel = Kernel::load(vm.memory(), layout, &mut file)
        .map_err(|error| anyhow!("kernel {kernel_path} {error}"))?;
    let initramfs = match &payload.initramfs {
        None => None,
        Some(path) => {
            let mut file = open("initramfs", path, broker)?;
            let loaded = Initramfs::load(vm.memory(), layout, &kernel, &mut file)
                .map_err(|error| anyhow!("initramfs {} {error}", path.display()))?;
            Some(loaded)
        }
    };
    let entry = kernel
        .prepare(vm.memory(), layout, &payload.cmdline, initramfs, rsdp)
        .context("--cmdline")?;
    Ok(match entry {
        Entry::Long {
            entry,
            boot_params,
            page_table,
            gdt,
        } => BootState::Long {
            entry,
            boot_params,
            page_table,
            gdt,
        },
        Entry::Pvh { entry, start_info } => BootState::Pvh { entry, start_info },
    })
}

fn open(what: &str, path: &Path, broker: &Broker) -> anyhow::Result<File> {
    let file = broker
        .open(path)
        .with_context(|| format!("cannot open {what} {}", path.display()))?;
    if !file.metadata()?.is_file() {
        bail!("{what} {} is not a file", path.display());
    }
    Ok(file)
}

fn add_serial(
    console: Option<Console>,
    ports: &Bus,
    interrupts: &Interrupts,
) -> anyhow::Result<Option<(Console, Arc<Serial>)>> {
    let Some(console) = console else {
        return Ok(None);
    };
    const EVENTFD: &str = "cannot make an eventfd for the serial port";
    let irq = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).context(EVENTFD)?;
    interrupts.bind_pin(COM1_GSI, &irq)?;
    let serial = Arc::new(Serial::new(irq, console.writer()).context(EVENTFD)?);
    insert(ports, COM1_PORTS, serial.clone())?;
    Ok(Some((console, serial)))
}

fn add_power(buses: &Buses) -> anyhow::Result<()> {
    let registers = crate::power::PowerRegisters(buses.stop.clone());
    insert(&buses.ports, POWER_PORTS, Arc::new(registers))
}

fn add_pci(
    vm: &Vm,
    config: &VmConfig,
    layout: &Layout,
    buses: &Buses,
    (interrupts, reports): (Arc<Interrupts>, &Arc<Reports>),
    broker: &Broker,
) -> anyhow::Result<Vec<Arc<Frontend>>> {
    let windows = [layout.pci_64(), PCI_32].map(|(base, len)| Window { base, len });
    let root = PciRoot::new(&windows)?;
    insert(&buses.ports, PCI_CONFIG_PORTS, root.config_ports())?;
    insert(&buses.memory, ECAM, root.ecam())?;
    for (window, device) in root.mmio() {
        insert(&buses.memory, (window.base, window.len), device)?;
    }
    let hypervisor = Arc::new(Kvm {
        interrupts,
        doorbells: vm.doorbells(),
    });
    config
        .devices()
        .into_iter()
        .map(|(flag, device)| {
            let connector = Box::new(
                broker
                    .connector(&device.socket)
                    .map_err(|error| {
                        let socket = device.socket.clone();
                        FrontendError::connecting(socket, error)
                    })
                    .context(flag)?,
            );
            let observer = reports.clone();
            let observer = Box::new(move |socket: &Path, event: BackendEvent<'_>| {
                observer.note(socket, &event);
            });
            let frontend = Frontend::connect(device, vm.memory().clone(), connector, observer)
                .context(flag)?;
            let function =
                VirtioPci::new(frontend.clone(), hypervisor.clone(), vm.memory().clone())
                    .with_context(|| format!("{flag}: cannot make the PCI function"))?;
            root.add(function).context(flag)?;
            Ok(frontend)
        })
        .collect()
}

fn insert<T: Into<u64>>(
    bus: &Bus,
    (base, len): (T, T),
    device: Arc<dyn BusDevice>,
) -> anyhow::Result<()> {
    Ok(bus.insert(base.into(), len.into(), device)?)
}
