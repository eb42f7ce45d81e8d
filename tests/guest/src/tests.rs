//! What the guest can do, chosen by `test=` on the kernel command line.
//!
//! | `test=` | does | further words (default) |
//! |---|---|---|
//! | `start` | nothing but start and end | |
//! | `blk` | reads, writes the pattern, flushes, reads back | `read=SECTORS` (128), `write=SECTORS` (128), `at=SECTOR` (the end of what is read), `size=SECTORS` (8), `depth=N` (8), `seed=N` (1), `disk=N` (0) |
//! | `blk-stress` | writes and checks at random places | `n=N` (1000), `span=SECTORS` (2048), `reports=N` (10), `seed`, `depth`, `disk` |
//! | `idle-io` | waits for `go` in a sector, reads, writes `done` into the next, waits for `end` | `n=N` (1000), `signal=SECTOR` (0), `disk` |
//! | `blk-msix` | masks and re-routes the interrupt of a block device | `disk` |
//! | `echo` | says again every line it receives on COM1 | `n=N` (1) |
//! | `button` | does what the lines say that it receives on COM1: `enable` the power button's interrupt, `wait` for a press, `count` the presses, `end` | |
//! | `net` | ARP, ICMP echo, then datagrams to a server that returns them with every bit inverted | `ip=`, `peer=`, `port=N` (7), `n=N` (100), `progress=N` (10), `patience=SECONDS` (1) until something is sent again, `seed` |
//! | `smp` | starts all processors, lets them count together, interrupts each | `n=N` (100000) |
//! | `memory` | writes and checks all memory, a word every so often | `stride=BYTES` (4096) |
//! | `hostile-driver` | sets up a device with mistakes | `device=blk\|net` (blk), `rounds=N` (100), `seed` |
//! | `hostile` | reads and writes device registers at random | `n=N` (10000), `seed` |
//! | `reset` | resets by ACPI | |
//! | `triple-fault` | triple-faults | |
//!
//! `pci=ports` uses the PCI configuration ports instead of ECAM.

mod block;
mod hostile;
mod machine;
mod network;

use crate::acpi::Acpi;
use crate::cmdline::CommandLine;
use crate::pci::{self, Configuration};
use crate::power;
use crate::serial::say;

/// The first vector of the block device; the network device's are the next ones.
const DISK_VECTOR: u8 = 0x30;
const NIC_VECTOR: u8 = 0x38;

/// Does what the command line says.
pub(crate) fn run(words: &CommandLine, acpi: &Acpi) {
    let test = words.value("test").unwrap_or("start");
    let configuration = Configuration::new(words, acpi);
    say!(
        "start test={test} cpus={} pci-functions={}",
        acpi.processors().len(),
        pci::count_functions(configuration)
    );
    for test in test.split(',') {
        match test {
            "start" => {}
            "blk" => block::check(words, configuration),
            "blk-stress" => block::stress(words, configuration),
            "idle-io" => block::idle_io(words, configuration),
            "blk-msix" => block::msix(words, configuration),
            "echo" => machine::echo(words),
            "button" => machine::power_button(acpi),
            "net" => network::check(words, configuration),
            "smp" => machine::processors(words, acpi),
            "memory" => machine::memory(words),
            "hostile-driver" => hostile::driver(words, configuration),
            "hostile" => hostile::registers(words, acpi, configuration),
            "reset" => power::reset(acpi),
            "triple-fault" => power::triple_fault(),
            other => panic!("command line: test={other} is unknown"),
        }
    }
    say!("ok");
}
