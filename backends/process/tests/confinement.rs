//! Confinement can't be undone, so each case runs in a process of its own: this very test binary, started again.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use bulkhead_process::confine::Confinement;

mod alone;

use alone::Case;

const CASES: &[Case] = &[
    (
        "open_socket_and_execve_are_refused",
        open_socket_and_execve_are_refused,
    ),
    (
        "a_path_that_is_allowed_opens_and_others_do_not",
        a_path_that_is_allowed_opens_and_others_do_not,
    ),
    (
        "capabilities_are_gone_and_cannot_be_had_again",
        capabilities_are_gone_and_cannot_be_had_again,
    ),
    (
        "only_the_socket_families_and_ioctls_named_are_allowed",
        only_the_socket_families_and_ioctls_named_are_allowed,
    ),
];

fn main() {
    alone::main(CASES);
}

fn refused<T>(result: io::Result<T>) -> bool {
    matches!(result, Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)))
}

fn open_socket_and_execve_are_refused() {
    Confinement::new().enter().unwrap();
    assert!(refused(File::open("/etc/hostname")));
    assert!(refused(TcpListener::bind("127.0.0.1:0")));
    assert!(refused(UnixStream::pair()));
    assert!(refused(Command::new("/bin/true").status()));
    // Threads, allocation and output still work.
    std::thread::spawn(|| vec![1u8; 1 << 20]).join().unwrap();
}

fn a_path_that_is_allowed_opens_and_others_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    std::fs::write(&inside, "x").unwrap();
    Confinement::new()
        .allow(&[libc::SYS_openat, libc::SYS_unlink, libc::SYS_unlinkat])
        .read_path(&inside)
        .enter()
        .unwrap();
    assert!(File::open(&inside).is_ok());
    assert!(refused(File::options().write(true).open(&inside)));
    assert!(refused(File::open("/etc/passwd")));
    // The folder was not among the paths, so it stays; a temporary place.
    std::mem::forget(folder);
}

fn capabilities_are_gone_and_cannot_be_had_again() {
    Confinement::new()
        .allow(&[libc::SYS_openat])
        .read_path("/proc/self/status")
        .enter()
        .unwrap();
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).unwrap();
    for field in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        assert!(line.ends_with("0000000000000000"), "{line}");
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(status.contains("Seccomp:\t2"), "{status}");
}

fn only_the_socket_families_and_ioctls_named_are_allowed() {
    Confinement::new()
        .allow(&[libc::SYS_socketpair, libc::SYS_connect])
        .allow_socket_families(&[libc::AF_UNIX])
        .allow_ioctls(&[libc::FIONREAD])
        .enter()
        .unwrap();
    let (one, _other) = UnixStream::pair().unwrap();
    assert!(rustix::io::ioctl_fionread(&one).is_ok());
    assert!(rustix::io::ioctl_fionbio(&one, true).is_err());
    assert!(UnixStream::connect("/nowhere").is_err_and(|e| e.kind() == io::ErrorKind::NotFound));
    assert!(refused(TcpListener::bind("127.0.0.1:0")));
}
