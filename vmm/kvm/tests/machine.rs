//! Machines with a few instructions in them, on this host's KVM.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]
#![allow(clippy::unwrap_used)] // A failed step is a failed test.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_boot::Entry;
use bulkhead_kvm::{Crash, Platform, Vcpus, Vm, guest_ram};
use vm_memory::{Bytes, GuestAddress};

const CODE: u32 = 0x1000;
const LONG_ENOUGH: Duration = Duration::from_secs(20);

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    PortWrite(u16, Vec<u8>),
    MemoryRead(u64),
    MemoryWrite(u64, Vec<u8>),
    Crashed(u8, Crash),
}

struct Recorder(Mutex<Sender<Seen>>);

impl Recorder {
    fn record(&self, seen: Seen) {
        // The test may have ended: nobody is interested then.
        let _ = self.0.lock().unwrap().send(seen);
    }
}

impl Platform for Recorder {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0x5a);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        self.record(Seen::PortWrite(port, data.to_vec()));
    }

    fn memory_read(&self, address: u64, data: &mut [u8]) {
        data.copy_from_slice(&0x1234_5678_u32.to_le_bytes());
        self.record(Seen::MemoryRead(address));
    }

    fn memory_write(&self, address: u64, data: &[u8]) {
        self.record(Seen::MemoryWrite(address, data.to_vec()));
    }

    fn crashed(&self, vcpu: u8, crash: Crash) {
        self.record(Seen::Crashed(vcpu, crash));
    }
}

/// A machine that begins with `code` in 32-bit protected mode. Dropped in this order.
struct Machine {
    vcpus: Vcpus,
    _vm: Vm,
    seen: Receiver<Seen>,
}

fn start(code: &[u8], paused: bool) -> Machine {
    let ram = guest_ram(&[(0, 1 << 20)], false).unwrap();
    ram.write_slice(code, GuestAddress(CODE.into())).unwrap();
    let vm = Vm::new(ram).unwrap();
    let _interrupts = vm.interrupts().unwrap();
    let boot = Entry::Pvh {
        entry: CODE,
        start_info: 0,
    };
    let vcpus = vm.create_vcpus(2, &boot).unwrap();
    let (sender, seen) = channel();
    let platform = Arc::new(Recorder(Mutex::new(sender)));
    let vcpus = Vcpus::start(vcpus, &platform, paused, || ()).unwrap();
    Machine {
        vcpus,
        _vm: vm,
        seen,
    }
}

/// Whether there is a KVM to test with; says so when there is none.
fn kvm_is_usable() -> bool {
    match std::fs::File::open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: /dev/kvm: {error}");
            false
        }
    }
}

#[test]
fn accesses_reach_the_platform_and_a_triple_fault_ends_the_vcpu() {
    if !kvm_is_usable() {
        return;
    }
    let machine = start(
        &[
            0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0xec, // in al, dx
            0xee, // out dx, al
            0xa1, 0x00, 0x00, 0x00, 0xd0, // mov eax, [0xd0000000]
            0xa3, 0x08, 0x00, 0x00, 0xd0, // mov [0xd0000008], eax
            0x0f, 0x0b, // ud2, and there is no IDT
        ],
        false,
    );

    let next = || machine.seen.recv_timeout(LONG_ENOUGH).unwrap();
    assert_eq!(next(), Seen::PortWrite(0x3f8, vec![0x5a]));
    assert_eq!(next(), Seen::MemoryRead(0xd000_0000));
    let value = 0x1234_5678_u32.to_le_bytes().to_vec();
    assert_eq!(next(), Seen::MemoryWrite(0xd000_0008, value));
    assert_eq!(next(), Seen::Crashed(0, Crash::TripleFault));
    let counts = machine.vcpus.exit_counts();
    assert_eq!((counts[0].io, counts[0].mmio, counts[0].other), (2, 2, 1));
    assert_eq!((counts[1].io, counts[1].mmio, counts[1].other), (0, 0, 0));
}

#[test]
fn string_output_arrives_element_by_element() {
    if !kvm_is_usable() {
        return;
    }
    let machine = start(
        &[
            0xbe, 0x20, 0x10, 0x00, 0x00, // mov esi, 0x1020
            0xb9, 0x02, 0x00, 0x00, 0x00, // mov ecx, 2
            0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0xfc, // cld
            0xf3, 0x66, 0x6f, // rep outsw
            0x0f, 0x0b, // ud2
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // up to 0x1020
            1, 2, 3, 4,
        ],
        false,
    );

    let next = || machine.seen.recv_timeout(LONG_ENOUGH).unwrap();
    assert_eq!(next(), Seen::PortWrite(0x3f8, vec![1, 2]));
    assert_eq!(next(), Seen::PortWrite(0x3f8, vec![3, 4]));
}

#[test]
fn a_guest_that_never_leaves_is_paused_resumed_and_stopped() {
    if !kvm_is_usable() {
        return;
    }
    let machine = start(
        &[
            0xff, 0x05, 0x00, 0x20, 0x00, 0x00, // inc dword [0x2000]
            0xeb, 0xf8, // back to it
        ],
        true,
    );
    let counter =
        |machine: &Machine| -> u32 { machine._vm.memory().read_obj(GuestAddress(0x2000)).unwrap() };
    assert_eq!(counter(&machine), 0);

    machine.vcpus.resume();
    while counter(&machine) == 0 {
        std::thread::yield_now();
    }
    machine.vcpus.pause();
    let paused_at = counter(&machine);
    std::thread::sleep(Duration::from_millis(20)); // would count thousands, if it ran
    assert_eq!(counter(&machine), paused_at);

    machine.vcpus.resume();
    while counter(&machine) == paused_at {
        std::thread::yield_now();
    }
    drop(machine.vcpus);
}
