//! A guest that means harm: it drives a device wrongly, and reads and writes registers at random. Whatever becomes of its devices, the monitor
//! must go on.

use alloc::vec::Vec;
use core::ops::Range;

use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{Cam, PciRoot};
use virtio_drivers::{BufferDirection, Hal};

use super::DISK_VECTOR;

use crate::acpi::Acpi;
use crate::cmdline::CommandLine;
use crate::memory::{self, GuestHal};
use crate::msix::MsixTable;
use crate::pci::{self, Configuration};
use crate::serial::say;
use crate::smp::ticks;
use crate::transport::VirtioTransport;
use crate::{pattern, port};

const CONFIGURATION_SPACE: u64 = 4096;
const RING_PAGES: usize = 8;
/// As many bytes as a device can be told to write behind an address.
const SLACK_PAGES: usize = 16;
/// Makes an address one where there is no memory.
const NO_MEMORY: u64 = 1 << 62;
/// Time stamp counter ticks in which a backend would find something to do: about 3 ms.
const A_WHILE: u64 = 10_000_000;

const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
const DEVICE_STATUS: u64 = 20;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_VECTOR: u64 = 26;
const QUEUE_ENABLE: u64 = 28;
const QUEUE_DESCRIPTORS: u64 = 32;
const QUEUE_DRIVER: u64 = 40;
const QUEUE_DEVICE: u64 = 48;

/// What the machine itself needs: 8259s and timer (which KVM has, and whose interrupts have no gates here), the serial port,
/// and what would end the machine.
const SPARED_PORTS: [Range<u16>; 8] = [
    0x20..0x22,
    0x40..0x44,
    0x60..0x65,
    0x92..0x93,
    0xa0..0xa2,
    0x3f8..0x400,
    0x4d0..0x4d2,
    0xcf9..0xcfa,
];

/// Random numbers that can be had again.
struct Random {
    seed: u64,
    index: u64,
}

impl Random {
    fn next(&mut self) -> u64 {
        self.index += 1;
        u64::from_le_bytes(pattern::word(self.seed, self.index))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// The kinds of numbers that registers take exception to.
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => self.below(16),
            3 => 1 << self.below(64),
            4 => self.next() & 0xffff,
            _ => self.next(),
        }
    }
}

/// Sets up a device `rounds` times as drivers do, but that any step may be wrong or missing.
pub(super) fn driver(words: &CommandLine, configuration: Configuration) {
    let rounds = words.number("rounds", 100);
    let mut random = Random {
        seed: words.number("seed", 1),
        index: 0,
    };
    let kind = match words.value("device") {
        Some("net") => DeviceType::Network,
        _ => DeviceType::Block,
    };
    let Some(function) = pci::find_virtio(configuration, kind, 0) else {
        panic!("there is no such device");
    };
    let transport = match VirtioTransport::new(configuration, function, DISK_VECTOR) {
        Ok(transport) => transport,
        Err(error) => panic!("{function}: {error}"),
    };
    let (rings, _) = GuestHal::dma_alloc(RING_PAGES + SLACK_PAGES, BufferDirection::Both);
    for _ in 0..rounds {
        set_up_wrongly(&mut random, transport.structures(), rings);
    }
    say!("hostile rounds={rounds}");
    // Dropped, it resets the device: whatever has happened, that must work.
}

fn set_up_wrongly(random: &mut Random, (common, notify): (u64, u64), rings: u64) {
    for word in 0..RING_PAGES as u64 * 4096 / 8 {
        // Descriptors, more or less, which as rings make some sense too: an address; a length, flags and a number. What
        // the device takes for good it writes to, so no address is that of other memory.
        let value = match (random.below(16), word % 2) {
            (0, 0) => random.value() | NO_MEMORY,
            (1..8, 0) => random.below(4) << 16 | NO_MEMORY,
            (_, 0) => rings + random.below(RING_PAGES as u64 * 4096),
            (0, _) => random.value() & !(0xffff << 16),
            _ => random.below(2048) | random.below(8) << 32 | random.below(8) << 48,
        };
        // SAFETY: the memory of the rings, which nothing else uses.
        unsafe { memory::write(rings + word * 8, value) }
    }
    let put = |random: &mut Random, offset: u64, width: u64, value: u64| {
        let value = match random.below(16) {
            0 if width < 8 => random.value(),
            _ => value,
        };
        let times = [0, 1, 1, 1, 1, 1, 1, 2][random.below(8) as usize];
        for _ in 0..times {
            // SAFETY: a field of the common configuration structure, mapped.
            unsafe {
                match width {
                    1 => memory::write(common + offset, value as u8),
                    2 => memory::write(common + offset, value as u16),
                    4 => memory::write(common + offset, value as u32),
                    _ => memory::write(common + offset, value),
                }
            }
        }
    };
    for status in [0, 1, 3] {
        put(random, DEVICE_STATUS, 1, status);
    }
    for (select, features) in [(0, random.value() & 0x7000_0000), (1, 1)] {
        put(random, DRIVER_FEATURE_SELECT, 4, select);
        put(random, DRIVER_FEATURE, 4, features);
    }
    put(random, DEVICE_STATUS, 1, 11);
    for _ in 0..1 + random.below(3) {
        let queue = random.below(2) * random.below(4);
        put(random, QUEUE_SELECT, 2, queue);
        let size = 1 << random.below(9);
        put(random, QUEUE_SIZE, 2, size);
        put(random, QUEUE_VECTOR, 2, queue);
        for offset in [QUEUE_DESCRIPTORS, QUEUE_DRIVER, QUEUE_DEVICE] {
            let address = match random.below(16) {
                0 => random.value() | NO_MEMORY,
                1 => rings + random.below(RING_PAGES as u64 * 4096),
                _ => rings + random.below(RING_PAGES as u64) * 4096,
            };
            put(random, offset, 8, address);
        }
        put(random, QUEUE_ENABLE, 2, 1);
    }
    put(random, DEVICE_STATUS, 1, 15);
    for queue in 0..random.below(4) {
        // SAFETY: a doorbell, or what lies beside one, mapped.
        unsafe { memory::write(notify + queue * 4, queue as u16) }
    }
    let since = ticks();
    while ticks() - since < random.below(2) * A_WHILE {
        core::hint::spin_loop();
    }
}

/// `n` accesses to registers of all kinds.
pub(super) fn registers(words: &CommandLine, acpi: &Acpi, configuration: Configuration) {
    let accesses = words.number("n", 10_000);
    let mut random = Random {
        seed: words.number("seed", 1),
        index: 0,
    };
    let regions = regions(configuration);
    let power = acpi.power_ports();
    for region in &regions {
        say!(
            "hostile region={:#x} size={:#x}",
            region.start,
            region.end - region.start
        );
    }
    for _ in 0..accesses {
        if random.below(4) == 0 {
            let port = random.below(0xfffd) as u16;
            let touches =
                |spared: &Range<u16>| spared.start < port.saturating_add(4) && port < spared.end;
            if !SPARED_PORTS.iter().any(touches) && !power.iter().any(touches) {
                access_port(&mut random, port);
            }
        } else {
            let region = &regions[random.below(regions.len() as u64) as usize];
            let address = region.start + random.below(region.end - region.start);
            access_memory(&mut random, address);
        }
    }
    say!("hostile accesses={accesses}");
}

/// The configuration space of every function, and what every virtio device has in its BARs but the MSI-X table, with which
/// a guest could reset its own processor.
fn regions(configuration: Configuration) -> Vec<Range<u64>> {
    let mut root = PciRoot::new(configuration);
    let functions: Vec<_> = root.enumerate_bus(0).collect();
    let mut regions = Vec::new();
    for (function, _) in functions {
        if let Configuration::Memory(base) = configuration {
            let start = base + u64::from(Cam::Ecam.cam_offset(function, 0));
            regions.push(start..start + CONFIGURATION_SPACE);
        }
        let spared = MsixTable::pages(configuration, function);
        for bar in root.bars(function).into_iter().flatten().flatten() {
            let Some((address, size)) = bar.memory_address_size() else {
                continue;
            };
            memory::map_device(address, size);
            regions.extend(
                (address..address + size)
                    .step_by(4096)
                    .filter(|page| !spared.contains(page))
                    .map(|page| page..page + 4096),
            );
        }
    }
    regions
}

fn access_port(random: &mut Random, port: u16) {
    let value = random.value();
    match random.below(5) {
        0 => port::write_u8(port, value as u8),
        1 => port::write_u16(port, value as u16),
        2 => port::write_u32(port, value as u32),
        3 => drop(port::read_u8(port)),
        _ => drop(port::read_u32(port)),
    }
}

fn access_memory(random: &mut Random, address: u64) {
    let value = random.value();
    // Mostly as drivers do, but not always.
    let address = if random.below(8) == 0 {
        address
    } else {
        (address & !7) + random.below(2) * 4
    };
    // SAFETY: device memory, mapped, that the program does not use otherwise; x86-64 allows unaligned accesses, and the
    // plain instructions below are those of volatile accesses.
    unsafe {
        match random.below(6) {
            0 => memory::write(address, value as u8),
            1 => memory::write(address, value as u16),
            2 => memory::write(address, value as u32),
            3 => memory::write(address, value),
            4 => drop(memory::read::<u16>(address)),
            _ => drop(memory::read::<u32>(address)),
        }
    }
}
