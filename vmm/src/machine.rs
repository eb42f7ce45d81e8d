//! The machine: the one list of its devices, and the guest's memory as it is at the first instruction.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use bulkhead_boot::layout::{COM1_GSI, COM1_PORTS, ECAM, PCI_32, PCI_CONFIG_PORTS, POWER_PORTS};
use bulkhead_boot::{Entry, Initramfs, Kernel, Layout, acpi, reset_vector};
use bulkhead_devices::pci::{PciRoot, Window};
use bulkhead_devices::vhost_user::{BackendEvent, Frontend};
use bulkhead_devices::virtio::VirtioPci;
use bulkhead_devices::{Bus, BusDevice, Serial};
use bulkhead_kvm::{BootState, Interrupts, Vcpu, Vm, guest_ram};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::config::{PayloadConfig, VmConfig};
use crate::console::Console;
use crate::ending::Endings;
use crate::host;
use crate::hypervisor::Kvm;
use crate::platform::Buses;

/// A machine that is ready to run.
pub(crate) struct Machine {
    pub(crate) buses: Arc<Buses>,
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) console: Option<(Console, Arc<Serial>)>,
    pub(crate) frontends: Vec<Arc<Frontend>>,
    // The vCPUs end before their machine does.
    _vm: Vm,
}

impl Machine {
    /// Builds what `config` describes.
    pub(crate) fn new(config: &VmConfig) -> anyhow::Result<Self> {
        let layout = Layout::new(config.memory.size);
        let vm = Vm::new(allocate(config, &layout)?)?;
        let interrupts = vm.interrupts()?;
        let buses = Arc::new(Buses::new(Arc::new(Endings::new()?)));

        let console = add_serial(config, &buses.ports, &interrupts)?;
        add_power(&buses)?;
        let frontends = add_pci(&vm, config, &layout, &buses, interrupts)?;

        let cpus = u8::try_from(config.cpus.boot_vcpus).context("--cpus")?;
        reset_vector::write(vm.memory())?;
        let rsdp = acpi::write(vm.memory(), &layout, cpus)?;
        let boot = load(&vm, &layout, &config.payload, rsdp)?;
        let vcpus = vm.create_vcpus(cpus, &boot)?;
        Ok(Self {
            buses,
            vcpus,
            console,
            frontends,
            _vm: vm,
        })
    }

    /// Takes the terminal, if the serial port is on one, out of line mode.
    pub(crate) fn make_console_raw(&mut self) {
        if let Some((console, _)) = &mut self.console {
            console.make_raw();
        }
    }

    /// The path of the serial port's socket.
    pub(crate) fn console_socket(&self) -> Option<&Path> {
        self.console.as_ref()?.0.socket()
    }
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

fn load(vm: &Vm, layout: &Layout, payload: &PayloadConfig, rsdp: u64) -> anyhow::Result<BootState> {
    let kernel_path = payload.kernel.display();
    let mut file = open("kernel", &payload.kernel)?;
    let kernel = Kernel::load(vm.memory(), layout, &mut file)
        .map_err(|error| anyhow!("kernel {kernel_path} {error}"))?;
    let initramfs = match &payload.initramfs {
        None => None,
        Some(path) => {
            let mut file = open("initramfs", path)?;
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

fn open(what: &str, path: &Path) -> anyhow::Result<File> {
    let file =
        File::open(path).with_context(|| format!("cannot open {what} {}", path.display()))?;
    if !file.metadata()?.is_file() {
        bail!("{what} {} is not a file", path.display());
    }
    Ok(file)
}

fn add_serial(
    config: &VmConfig,
    ports: &Bus,
    interrupts: &Interrupts,
) -> anyhow::Result<Option<(Console, Arc<Serial>)>> {
    let Some(console) = Console::open(&config.serial)? else {
        return Ok(None);
    };
    let irq = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    interrupts.bind_pin(COM1_GSI, &irq)?;
    let serial = Arc::new(Serial::new(irq, console.writer())?);
    insert(ports, COM1_PORTS, serial.clone())?;
    Ok(Some((console, serial)))
}

fn add_power(buses: &Buses) -> anyhow::Result<()> {
    let registers = crate::power::PowerRegisters(buses.endings.clone());
    insert(&buses.ports, POWER_PORTS, Arc::new(registers))
}

fn add_pci(
    vm: &Vm,
    config: &VmConfig,
    layout: &Layout,
    buses: &Buses,
    interrupts: Arc<Interrupts>,
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
            let frontend =
                Frontend::connect(device, vm.memory().clone(), Box::new(tell)).context(flag)?;
            let function =
                VirtioPci::new(frontend.clone(), hypervisor.clone(), vm.memory().clone())?;
            root.add(function)?;
            Ok(frontend)
        })
        .collect()
}

/// A guest whose disk stands still is a riddle, unless somebody says why.
fn tell(socket: &Path, event: BackendEvent<'_>) {
    let socket = socket.display();
    match event {
        BackendEvent::Lost => eprintln!("warning: {socket}: the backend is gone; waiting for it"),
        BackendEvent::Unusable(error) => eprintln!("warning: {error}"),
        BackendEvent::Back => eprintln!("warning: {socket}: the backend is back"),
    }
}

fn insert<T: Into<u64>>(
    bus: &Bus,
    (base, len): (T, T),
    device: Arc<dyn BusDevice>,
) -> anyhow::Result<()> {
    Ok(bus.insert(base.into(), len.into(), device)?)
}
