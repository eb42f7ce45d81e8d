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
/// Whether a socket blocks.
const FIONBIO: u64 = 0x5421;

const SYSCALLS: &[libc::c_long] = &[
    // Clients of the API and of the serial port.
    libc::SYS_accept4,
    // A backend that comes back, and its channel for what it has to say.
    libc::SYS_connect,
    libc::SYS_socketpair,
    // The API's socket and the serial port's, at the end. Landlock allows it nowhere else.
    libc::SYS_unlink,
];

/// Confines the process. `sockets` are those it has made and is to remove.
pub(crate) fn confine<'a>(
    sockets: impl Iterator<Item = &'a std::path::Path>,
) -> anyhow::Result<()> {
    let mut confinement = Confinement::new()
        .allow(SYSCALLS)
        .allow_ioctls(&[
            KVM_RUN,
            KVM_SET_GSI_ROUTING,
            KVM_IRQFD,
            KVM_IOEVENTFD,
            TCGETS2,
            TCSETS2,
            FIONBIO,
        ])
        .allow_socket_families(&[libc::AF_UNIX]);
    for socket in sockets {
        // Landlock knows rights to remove from a folder, not rights to remove a file.
        let folder = socket
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        confinement = confinement.write_path(folder.unwrap_or(std::path::Path::new(".")));
    }
    Ok(confinement.enter()?)
}
