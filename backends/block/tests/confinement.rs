//! What the serving process can still do: ptrace(2) has it make system calls, as an intruder in it would.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;
#[path = "../../process/tests/stopped/mod.rs"]
mod stopped;

use peer::{Backend, Guest, raw_image};
use stopped::{NEEDLESS, Stopped, has_no_privilege};

#[test]
fn a_server_that_holds_guest_memory_can_reach_nothing_else() {
    let (_folder, image) = raw_image(1 << 20);
    let backend = Backend::start(&image, "raw", &[]);
    let pid = backend.child.id();
    let mut guest = Guest::connect(&backend, 1);
    assert_eq!(guest.read(1, 512), [1; 512]);

    {
        let test = "a_server_that_holds_guest_memory_can_reach_nothing_else";
        let Some(stopped) = Stopped::attach(pid, test) else {
            return;
        };
        stopped.is_refused(&NEEDLESS);
        stopped.is_refused(&[
            ("clone", libc::SYS_clone, [0; 4]),
            ("unlink", libc::SYS_unlink, [0; 4]),
            ("bind", libc::SYS_bind, [0; 4]),
            ("ioctl(KVM_CREATE_VM)", libc::SYS_ioctl, [0, 0xae01, 0, 0]),
            ("io_uring_setup", libc::SYS_io_uring_setup, [0; 4]),
            ("io_uring_register", libc::SYS_io_uring_register, [0; 4]),
        ]);
    }

    has_no_privilege(pid);
    // And it serves as before.
    assert_eq!(guest.read(2, 512), [2; 512]);
}

#[test]
fn a_server_that_persists_can_remove_its_socket_and_open_nothing() {
    let (_folder, image) = raw_image(1 << 20);
    let backend = Backend::start(&image, "raw", &["--persist"]);
    let mut guest = Guest::connect(&backend, 1);
    assert_eq!(guest.read(1, 512), [1; 512]);

    let test = "a_server_that_persists_can_remove_its_socket_and_open_nothing";
    let Some(stopped) = Stopped::attach(backend.child.id(), test) else {
        return;
    };
    for number in [libc::SYS_open, libc::SYS_openat, libc::SYS_execve] {
        assert_eq!(stopped.call(number, [0; 4]), -i64::from(libc::EPERM));
    }
}
