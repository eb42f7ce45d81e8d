//! The machine: its devices, its vCPUs, and guest memory as it is at the first instruction.

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use bulkhead_boot::{Entry, Initramfs, Kernel, Layout, acpi, reset_vector};
use bulkhead_devices::Serial;
use bulkhead_kvm::{Vcpu, Vm, guest_ram};

use crate::backend_warnings::BackendWarnings;
use crate::broker::Broker;
use crate::buses::Buses;
use crate::config::{PayloadConfig, VmConfig};
use crate::console::Console;
use crate::devices::Devices;
use crate::host;
use crate::stop::Stop;

/// A machine that is ready to run.
pub(crate) struct Machine {
    pub(crate) buses: Arc<Buses>,
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) console: Option<(Console, Arc<Serial>)>,
    pub(crate) devices: Devices,
    pub(crate) warnings: Arc<BackendWarnings>,
    // It outlives the vCPUs.
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

        let mut devices = Devices::new(&vm, &layout, &buses, interrupts)?;
        let console = match console {
            Some(console) => {
                let serial = devices.add_serial(&console, &buses.ports)?;
                Some((console, serial))
            }
            None => None,
        };
        let warnings = BackendWarnings::new();
        let warnings =
            Arc::new(warnings.context("cannot make an eventfd for warnings about backends")?);
        for (flag, device) in config.devices() {
            let added = devices.add_vhost_user(device, &warnings, broker);
            added.context(flag)?;
        }

        let cpus = u8::try_from(config.cpus.boot_vcpus).context("--cpus")?;
        reset_vector::write(vm.memory())?;
        let rsdp = acpi::write(vm.memory(), &layout, cpus)?;
        let entry = load(&vm, &layout, &config.payload, rsdp, broker)?;
        let vcpus = vm.create_vcpus(cpus, &entry)?;
        Ok(Self {
            buses,
            vcpus,
            console,
            devices,
            warnings,
            _vm: vm,
        })
    }

    /// Puts the terminal into raw mode, if the serial port is on one.
    pub(crate) fn make_console_raw(&mut self) {
        if let Some((console, _)) = &mut self.console {
            console.make_raw();
        }
    }

    /// Waits until the guest's output is written.
    pub(crate) fn finish(&self) {
        if let Some((console, _)) = &self.console {
            console.finish();
        }
    }
}

/// Refuses paths that are not sockets, while the process can still look at them.
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
) -> anyhow::Result<Entry> {
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
    kernel
        .prepare(vm.memory(), layout, &payload.cmdline, initramfs, rsdp)
        .context("--cmdline")
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
