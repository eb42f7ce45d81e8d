//! What an intruder reaches from inside each program while a guest runs: calls made in its processes, on each of
//! their threads.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::fs;
use std::os::unix::net::UnixListener;

use bulkhead_tests::guest::{
    Backend, Format, Image, Machine, disk, in_own_namespace, ip, kvm_is_usable, net,
};
use bulkhead_tests::inject::{Host, Intruder};

/// Every thread of the process is an intruder once.
fn reach(name: &str, process: u32, host: &Host) {
    for thread in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let thread = thread
            .unwrap()
            .file_name()
            .to_string_lossy()
            .parse()
            .unwrap();
        let comm = fs::read_to_string(format!("/proc/{process}/task/{thread}/comm")).unwrap();
        // One that is in the guest, or computes, is not in a system call to be repeated.
        let Ok(intruder) = Intruder::enter(thread) else {
            assert_ne!(thread, process, "{name}: its first thread");
            continue;
        };
        let reached = intruder.reach(host).unwrap();
        assert!(reached.is_empty(), "{name}, thread {comm}: {reached:#?}");
    }
}

/// The process has namespaces of its own, and its root folder is empty.
fn sees_nothing(name: &str, process: u32) {
    for kind in ["mnt", "net", "ipc"] {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap();
        assert_ne!(of(&process.to_string()), of("self"), "{name}: {kind}");
    }
    let root = fs::read_dir(format!("/proc/{process}/root")).unwrap();
    let files: Vec<_> = root
        .filter(|entry| entry.as_ref().unwrap().path().is_file())
        .collect();
    assert!(files.is_empty(), "{name}: {files:?}");
}

fn is_stopped_by_the_kernel(name: &str, process: u32) {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    for field in [
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
    ] {
        assert!(status.contains(field), "{name}: {field}");
    }
}

#[test]
fn an_intruder_in_any_program_reaches_its_own_peers_and_nothing_else() {
    const TEST: &str = "an_intruder_in_any_program_reaches_its_own_peers_and_nothing_else";
    if !kvm_is_usable(TEST) {
        return;
    }
    in_own_namespace(TEST, || {
        ip("tuntap add tap0 mode tap vnet_hdr");
        ip("link set tap0 up");
        let folder = tempfile::tempdir().unwrap();
        let image = Image::with_pattern(folder.path(), "disk", Format::Qcow2, 4 << 20, 1);
        let block = Backend::block(folder.path(), "vda", &image, &["--num-queues", "2"]);
        let card = Backend::net(folder.path(), "net0", &["--tap", "tap0", "--persist"]);
        // The socket of another guest, in the same folder, with the same owner.
        let foreign = folder.path().join("other-guest.sock");
        let listener = UnixListener::bind(&foreign).unwrap();
        listener.set_nonblocking(true).unwrap();
        let neighbour = folder.path().join("neighbour.raw");
        fs::write(&neighbour, "of another guest").unwrap();
        let host = Host {
            file: neighbour.display().to_string(),
            socket: foreign.display().to_string(),
            process: std::process::id(),
        };
        let events = format!("path={}", folder.path().join("events").display());
        let events = ["--event-monitor".into(), events.into()];
        let arguments = [disk(&block), net(&card, ""), events].concat();
        let (mut machine, _input) = Machine::start_with_input("test=blk,echo", &arguments);
        machine.expect("blk");

        for (name, process) in [
            ("bulkhead-block", block.id()),
            ("bulkhead-net", card.id()),
            ("bulkhead-vmm", machine.id()),
        ] {
            reach(name, process, &host);
            sees_nothing(name, process);
            is_stopped_by_the_kernel(name, process);
        }

        assert!(listener.accept().is_err(), "nobody has connected");
        assert!(foreign.exists());
        assert_eq!(fs::read(&neighbour).unwrap(), b"of another guest");
    });
}
