use proptest::prelude::*;

use super::super::config::{BarSpec, ConfigSpace, Identity};
use super::*;

const LOW: Window = Window {
    base: 0xc000_0000,
    len: 0x10_0000,
};
const HIGH: Window = Window {
    base: 1 << 40,
    len: 1 << 30,
};

/// A function with one BAR that reads as its own number, and records what the bus maps.
struct Probe {
    number: u8,
    config: Mutex<ConfigSpace>,
    mapped: Mutex<Vec<Option<u64>>>,
    written: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Probe {
    fn new(number: u8, size: u64) -> Arc<Self> {
        let mut config = ConfigSpace::new(&Identity::default());
        config.add_bar(BarSpec { index: 0, size }).unwrap();
        Arc::new(Self {
            number,
            config: Mutex::new(config),
            mapped: Mutex::default(),
            written: Mutex::default(),
        })
    }
}

impl PciFunction for Probe {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config.lock().unwrap().read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> bool {
        self.config.lock().unwrap().write(offset, data)
    }

    fn bars(&self) -> Vec<Bar> {
        self.config.lock().unwrap().bars()
    }

    fn bar_mapped(&self, _index: usize, address: Option<u64>) {
        self.mapped.lock().unwrap().push(address);
    }

    fn read_bar(&self, _index: usize, offset: u64, data: &mut [u8]) {
        data.fill(self.number.wrapping_add(offset as u8));
    }

    fn write_bar(&self, _index: usize, offset: u64, data: &[u8]) {
        self.written.lock().unwrap().push((offset, data.to_vec()));
    }
}

fn at(device: u64, register: u64) -> u64 {
    device << 15 | register
}

fn read32(device: &dyn BusDevice, offset: u64) -> u32 {
    let mut data = [0; 4];
    device.read(offset, &mut data);
    u32::from_le_bytes(data)
}

/// What a guest reads from memory, whichever window it is in.
fn mmio_read(root: &Arc<PciRoot>, address: u64) -> u8 {
    let mut data = [0xff];
    for (window, device) in root.mmio() {
        if window.holds(address, 1) {
            device.read(address - window.base, &mut data);
        }
    }
    data[0]
}

#[test]
fn the_guest_finds_the_bridge_and_the_functions_and_nothing_else() {
    let root = PciRoot::new(&[LOW]).unwrap();
    let bdf = root.add_function(Probe::new(1, 0x1000)).unwrap();
    let ecam = root.ecam();

    assert_eq!(bdf.to_string(), "00:01.0");
    assert_eq!(read32(&*ecam, at(0, 0)), 0x0008_1b36);
    assert_eq!(read32(&*ecam, at(0, 8)) >> 8, 0x06_00_00);
    assert_eq!(read32(&*ecam, at(1, 0)), 0);
    for nobody in [at(2, 0), at(31, 0), at(1, 0) | 1 << 12, at(1, 0) | 1 << 20] {
        assert_eq!(read32(&*ecam, nobody), 0xffff_ffff, "{nobody:#x}");
    }
}

#[test]
fn the_ports_reach_the_same_registers_as_ecam() {
    let root = PciRoot::new(&[LOW]).unwrap();
    root.add_function(Probe::new(1, 0x1000)).unwrap();
    let (ports, ecam) = (root.config_ports(), root.ecam());

    ports.write(0, &(1 << 31 | 1 << 11 | 0x3c_u32).to_le_bytes());
    ports.write(4, &[0x5a]);

    assert_eq!(read32(&*ecam, at(1, 0x3c)), 0x5a);
    assert_eq!(read32(&*ports, 4), 0x5a);
    ports.write(0, &0x3c_u32.to_le_bytes());
    assert_eq!(read32(&*ports, 4), 0xffff_ffff, "not enabled");
    ports.write(1, &[0xff; 4]);
    ports.write(0, &[0xff]);
    assert_eq!(read32(&*ports, 0), 0x3c, "only whole, aligned writes count");
}

#[test]
fn bars_get_addresses_of_their_own_aligned_to_their_size() {
    let root = PciRoot::new(&[LOW, HIGH]).unwrap();
    let probes: Vec<_> = [0x1000, 0x8_0000, 0x1000, 0x10_0000]
        .map(|size| Probe::new(0, size))
        .into();
    for probe in &probes {
        root.add_function(probe.clone()).unwrap();
    }
    let bars: Vec<_> = probes.iter().flat_map(|probe| probe.bars()).collect();
    for (n, bar) in bars.iter().enumerate() {
        assert_eq!(bar.address % bar.size, 0);
        assert!(root.in_a_window(bar));
        for other in &bars[..n] {
            assert!(
                bar.address >= other.address + other.size
                    || other.address >= bar.address + bar.size
            );
        }
    }
    assert!(bars[3].address >= HIGH.base, "the low window is full");
}

#[test]
fn a_bar_answers_only_while_memory_is_enabled() {
    let root = PciRoot::new(&[LOW]).unwrap();
    let probe = Probe::new(7, 0x1000);
    root.add_function(probe.clone()).unwrap();
    let (ecam, base) = (root.ecam(), probe.bars()[0].address);

    assert_eq!(mmio_read(&root, base), 0xff);
    ecam.write(at(1, 4), &[2]);
    assert_eq!(mmio_read(&root, base + 3), 10);
    assert_eq!(mmio_read(&root, base + 0x1000), 0xff);
    ecam.write(at(1, 4), &[2]);
    ecam.write(at(1, 4), &[0]);
    assert_eq!(mmio_read(&root, base), 0xff);

    assert_eq!(*probe.mapped.lock().unwrap(), [Some(base), None]);
}

#[test]
fn the_guest_may_move_a_bar() {
    let root = PciRoot::new(&[LOW, HIGH]).unwrap();
    let probe = Probe::new(7, 0x1000);
    root.add_function(probe.clone()).unwrap();
    let (ecam, old) = (root.ecam(), probe.bars()[0].address);
    ecam.write(at(1, 4), &[2]);

    let new = HIGH.base + 0x5000;
    ecam.write(at(1, 4), &[0]);
    ecam.write(at(1, 0x10), &(new as u32).to_le_bytes());
    ecam.write(at(1, 0x14), &((new >> 32) as u32).to_le_bytes());
    ecam.write(at(1, 4), &[2]);

    assert_eq!(mmio_read(&root, old), 0xff);
    assert_eq!(mmio_read(&root, new), 7);
    assert_eq!(*probe.mapped.lock().unwrap(), [Some(old), None, Some(new)]);
}

#[test]
fn a_bar_outside_the_windows_or_on_top_of_another_is_not_mapped() {
    let root = PciRoot::new(&[LOW]).unwrap();
    let (first, second) = (Probe::new(1, 0x1000), Probe::new(2, 0x1000));
    root.add_function(first.clone()).unwrap();
    root.add_function(second.clone()).unwrap();
    let ecam = root.ecam();
    let base = first.bars()[0].address;
    ecam.write(at(1, 4), &[2]);

    ecam.write(at(2, 0x10), &(base as u32).to_le_bytes());
    ecam.write(at(2, 4), &[2]);
    assert_eq!(mmio_read(&root, base), 1);
    // RAM, the last page of the address space, half out of the window.
    for address in [0, 0xffff_ffff_ffff_f000, LOW.base + LOW.len] {
        ecam.write(at(2, 0x10), &u64::to_le_bytes(address));
    }
    assert_eq!(*second.mapped.lock().unwrap(), []);

    ecam.write(at(1, 4), &[0]);
    ecam.write(at(2, 0x10), &base.to_le_bytes());
    assert_eq!(*second.mapped.lock().unwrap(), [Some(base)]);
}

#[test]
fn a_removed_function_leaves_its_place_and_its_addresses() {
    let root = PciRoot::new(&[Window {
        base: 0xc000_0000,
        len: 0x1000,
    }])
    .unwrap();
    let probe = Probe::new(7, 0x1000);
    let bdf = root.add_function(probe.clone()).unwrap();
    let base = probe.bars()[0].address;
    root.ecam().write(at(1, 4), &[2]);
    assert!(matches!(
        root.add_function(Probe::new(8, 0x1000)),
        Err(PciError::NoRoom(0x1000))
    ));

    assert!(root.remove_function(bdf).is_some());

    assert!(root.remove_function(bdf).is_none());
    assert_eq!(*probe.mapped.lock().unwrap(), [Some(base), None]);
    assert_eq!(read32(&*root.ecam(), at(1, 0)), 0xffff_ffff);
    assert_eq!(root.add_function(Probe::new(8, 0x1000)).unwrap(), bdf);
}

#[test]
fn the_bus_is_full_after_31_functions() {
    let root = PciRoot::new(&[HIGH]).unwrap();
    for _ in 0..31 {
        root.add_function(Probe::new(0, 0x1000)).unwrap();
    }
    assert!(matches!(
        root.add_function(Probe::new(0, 0x1000)),
        Err(PciError::BusFull)
    ));
    assert!(
        root.remove_function(place(0)).is_none(),
        "the host bridge stays"
    );
}

proptest! {
    /// Whatever a guest writes anywhere, nothing panics and each address has at most one owner.
    #[test]
    fn hostile_configuration_is_survived(
        writes in prop::collection::vec((0..4_u64, 0..0x40_u64, prop::collection::vec(any::<u8>(), 0..9)), 0..100)
    ) {
        let root = PciRoot::new(&[LOW, HIGH]).unwrap();
        for number in 0..3 {
            root.add_function(Probe::new(number, 0x1000 << number)).unwrap();
        }
        let (ecam, ports) = (root.ecam(), root.config_ports());
        for (device, register, data) in writes {
            ecam.write(at(device, register), &data);
            ports.write(register % 8, &data);
            ports.read(register % 8, &mut data.clone());
            ecam.read(at(device, 0xff8 + register % 8), &mut data.clone());
            mmio_read(&root, LOW.base + register * 0x1000);
        }
        let routes = root.routes.read().unwrap();
        for pair in routes.windows(2) {
            prop_assert!(pair[0].bar.address + pair[0].bar.size <= pair[1].bar.address);
        }
        prop_assert!(routes.iter().all(|route| root.in_a_window(&route.bar)));
    }
}
