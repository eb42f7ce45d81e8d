//! What the monitor may still do once the guest runs: no file is opened, no program started, no network reached.

use bulkhead_process::confine::Confinement;

/// KVM's requests (linux/kvm.h): running vCPUs, and what the guest's set-up of interrupts and doorbells leads to.
const KVM_RUN: u64 = 0xae80;
const KVM_SET_GSI_ROUTING: u64 = 0x4008_ae6a;
const KVM_IRQFD: u64 = 0x4020_ae76;
const KVM_IOEVENTFD: u64 = 0x4040_ae79;

/// Putting the terminal back.
const TCGETS2: u64 = 0x802c_542a;
const TCSETS2: u64 = 0x402c_542b;
/// Whether it is a terminal.
const TIOCGWINSZ: u64 = 0x5413;
/// Whether a socket blocks.
const FIONBIO: u64 = 0x5421;

const SYSCALLS: &[libc::c_long] = &[
    // Clients of the API and of the serial port.
    libc::SYS_accept4,
    // Clearing an interrupt that has been delivered, without waiting.
    libc::SYS_preadv2,
];

/// Confines the process.
pub(crate) fn confine() -> anyhow::Result<()> {
    // The channel of a backend that comes back, for what it has to say, is a pair of sockets; connecting to it is the broker's.
    let confinement = Confinement::new().isolate().allow_socket_pairs();
    let confinement = confinement.allow(SYSCALLS).allow_ioctls(&[
        KVM_RUN,
        KVM_SET_GSI_ROUTING,
        KVM_IRQFD,
        KVM_IOEVENTFD,
        TCGETS2,
        TCSETS2,
        TIOCGWINSZ,
        FIONBIO,
    ]);
    Ok(confinement.enter()?)
}
