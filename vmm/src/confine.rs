//! What the monitor may do while it builds the guest, and while it runs it: then it opens no file, starts no program
//! and connects to nothing.

use std::path::Path;

use bulkhead_process::confine::{Confinement, First};

/// KVM's requests (linux/kvm.h) for running vCPUs, and for binding interrupts and doorbells as the guest sets them up.
const KVM_RUN: u64 = 0xae80;
const KVM_SET_GSI_ROUTING: u64 = 0x4008_ae6a;
const KVM_IRQFD: u64 = 0x4020_ae76;
const KVM_IOEVENTFD: u64 = 0x4040_ae79;

/// Restoring the terminal.
const TCGETS2: u64 = 0x802c_542a;
const TCSETS2: u64 = 0x402c_542b;
/// isatty(3).
const TIOCGWINSZ: u64 = 0x5413;
/// Setting a socket to blocking or not.
const FIONBIO: u64 = 0x5421;

/// Cloning descriptors.
const DUPLICATE: &[libc::c_int] = &[libc::F_DUPFD_CLOEXEC];

const SYSCALLS: &[libc::c_long] = &[
    // Clients of the API and of the serial port.
    libc::SYS_accept4,
    // Clearing an interrupt's eventfd without waiting.
    libc::SYS_preadv2,
];

/// System calls for building the machine.
const BUILDING: &[libc::c_long] = &[
    // Guest memory.
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    // /dev/kvm, /proc/meminfo, and the file that the serial port writes to.
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    // The kernel and its initramfs, which the broker has opened.
    libc::SYS_pread64,
    // The serial port's socket.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_connect,
    libc::SYS_fchmod,
    libc::SYS_chmod,
    libc::SYS_fchmodat,
    libc::SYS_flock,
    libc::SYS_unlinkat,
];

/// Making a VM and the first state of its vCPUs (linux/kvm.h), and reading the terminal's settings.
const BUILDING_IOCTLS: &[u64] = &[
    0xae00,      // KVM_GET_API_VERSION
    0xae01,      // KVM_CREATE_VM
    0xae03,      // KVM_CHECK_EXTENSION
    0xae04,      // KVM_GET_VCPU_MMAP_SIZE
    0xc008_ae05, // KVM_GET_SUPPORTED_CPUID
    0xae41,      // KVM_CREATE_VCPU
    0x4020_ae46, // KVM_SET_USER_MEMORY_REGION
    0xae47,      // KVM_SET_TSS_ADDR
    0x4008_ae48, // KVM_SET_IDENTITY_MAP_ADDR
    0xae60,      // KVM_CREATE_IRQCHIP
    0x4090_ae82, // KVM_SET_REGS
    0x8138_ae83, // KVM_GET_SREGS
    0x4138_ae84, // KVM_SET_SREGS
    0x4008_ae89, // KVM_SET_MSRS
    0x8400_ae8e, // KVM_GET_LAPIC
    0x4400_ae8f, // KVM_SET_LAPIC
    0x4008_ae90, // KVM_SET_CPUID2
    0xaea3,      // KVM_GET_TSC_KHZ
    0x5401,      // TCGETS
    0x540f,      // TIOCGPGRP
];

/// Begins the first stage, in which the machine is built of a kernel and an initramfs that the broker opens. Only
/// /dev/kvm is visible and, when the API creates the guest later, the folder in which its serial port may write
/// (`folder`).
pub(crate) fn begin(folder: Option<&Path>) -> anyhow::Result<First> {
    let running = Confinement::new()
        .isolate()
        .allow(SYSCALLS)
        // The channel for requests of a backend that comes back. The broker connects to the backend.
        .allow_socket_pairs()
        .allow_ioctls(&[
            KVM_RUN,
            KVM_SET_GSI_ROUTING,
            KVM_IRQFD,
            KVM_IOEVENTFD,
            TCGETS2,
            TCSETS2,
            TIOCGWINSZ,
            FIONBIO,
        ]);
    let building = Confinement::new()
        .allow(BUILDING)
        .allow_ioctls(BUILDING_IOCTLS)
        .allow_file_mappings()
        .allow_fcntls(&[libc::F_ADD_SEALS])
        .allow_socket_families(&[libc::AF_UNIX])
        .read_path("/proc/meminfo")
        .write_path("/dev/kvm");
    let building = folder.into_iter().fold(building, Confinement::write_path);
    Ok(running.begin(building)?)
}

/// Confines a vCPU's thread: it runs the guest, and binds interrupts and doorbells as the guest sets them up.
pub(crate) fn enter_vcpu() {
    enter(
        Confinement::for_thread()
            .allow(&[libc::SYS_preadv2])
            .allow_ioctls(&[KVM_RUN, KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD]),
    );
}

/// Confines the thread that talks to a backend: messages with descriptors, and a channel for the requests of a new
/// backend.
pub(crate) fn enter_reconnect_thread() {
    enter(
        Confinement::for_thread()
            .allow(&[
                libc::SYS_sendmsg,
                libc::SYS_recvmsg,
                libc::SYS_recvfrom,
                libc::SYS_shutdown,
                libc::SYS_epoll_create1,
                libc::SYS_eventfd2,
            ])
            .allow_socket_pairs()
            .allow_fcntls(DUPLICATE)
            .allow_ioctls(&[FIONBIO]),
    );
}

/// Confines a thread of the serial port.
pub(crate) fn enter_serial() {
    enter(
        Confinement::for_thread()
            .allow(&[libc::SYS_accept4, libc::SYS_shutdown])
            .allow_fcntls(DUPLICATE)
            .allow_ioctls(&[FIONBIO, TIOCGWINSZ]),
    );
}

/// Confines the thread that writes events to their file.
pub(crate) fn enter_event_monitor() {
    enter(Confinement::for_thread());
}

/// Ends the process if a thread cannot be confined: the guest needs every thread.
fn enter(confinement: Confinement) {
    if let Err(error) = confinement.enter_thread() {
        bulkhead_process::report(&error.to_string());
        std::process::exit(bulkhead_process::ERROR.into());
    }
}
