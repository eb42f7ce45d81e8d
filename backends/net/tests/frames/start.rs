//! How `bulkhead-net` starts and ends.

use std::os::fd::AsRawFd;

use bulkhead_test_frontend::program::{allow_files, processor_time};
use rustix::io::FdFlags;
use tap::{InterfaceName, Offloads, Options, Tap};
use virtio_bindings::virtio_net as net;

use crate::guest::{Guest, MERGED};
use crate::wire::{Net, Peer, frame, in_own_namespace, ip, program, same};

/// Runs it with arguments that it must refuse; its one line.
fn refused(arguments: &[&str], status: i32) -> String {
    let output = program().args(arguments).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("error: "), "{text}");
    text
}

#[test]
fn the_guest_sees_mac_and_mtu() {
    in_own_namespace("start::the_guest_sees_mac_and_mtu", || {
        let given = Net::start("--mac 52:54:00:0a:0b:0c --mtu 9000");
        let mut guest = Guest::connect(&given, 0, 2);
        assert_ne!(guest.offered & 1 << net::VIRTIO_NET_F_MAC, 0);
        assert_ne!(guest.offered & 1 << net::VIRTIO_NET_F_MTU, 0);
        assert_eq!(
            guest.config(12),
            [0x52, 0x54, 0, 0x0a, 0x0b, 0x0c, 1, 0, 1, 0, 0x28, 0x23]
        );
        drop((guest, given));

        let not_given = Net::start("");
        let guest = Guest::connect(&not_given, 0, 2);
        assert_eq!(
            guest.offered & (1 << net::VIRTIO_NET_F_MAC | 1 << net::VIRTIO_NET_F_MTU),
            0
        );
    });
}

#[test]
fn it_ends_with_its_guest_and_leaves_nothing() {
    in_own_namespace("start::it_ends_with_its_guest_and_leaves_nothing", || {
        let net = Net::start("");
        let socket = net.socket.clone();
        drop(Guest::connect(&net, MERGED, 2));
        let (status, said) = net.end();
        assert_eq!((status.code(), said.as_str()), (Some(0), ""));
        assert!(!socket.exists());
        assert!(
            !std::fs::read_to_string("/proc/net/dev")
                .unwrap()
                .contains("net0")
        );
    });
}

#[test]
fn inherited_descriptors_are_used() {
    in_own_namespace("start::inherited_descriptors_are_used", || {
        let tap = Tap::open(&InterfaceName::new("net0").unwrap(), Options::VNET_HDR).unwrap();
        let fd = std::os::fd::OwnedFd::from(tap);
        rustix::io::fcntl_setfd(&fd, FdFlags::empty()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("net.sock");
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).unwrap();
        let numbers = [theirs.as_raw_fd().to_string(), fd.as_raw_fd().to_string()];
        let child = program()
            .args(["--fd", &numbers[0], "--tap-fd", &numbers[1]])
            .spawn()
            .unwrap();
        drop((fd, theirs));
        let running = Net::adopt(child, socket, folder);
        let peer = Peer::new(Offloads::empty());
        let mut guest = Guest::on_stream(ours, MERGED, 2);
        let sent = frame(1, 100);
        guest.send(&sent, &[]);
        same(&peer.receive(), &sent);
        drop(guest);
        assert_eq!(running.end().0.code(), Some(0));
    });
}

#[test]
fn a_device_made_for_several_queues_serves_with_one() {
    in_own_namespace(
        "start::a_device_made_for_several_queues_serves_with_one",
        || {
            ip("tuntap add dev net0 mode tap vnet_hdr multi_queue");
            let net = Net::start("");
            let peer = Peer::new(Offloads::empty());
            let mut guest = Guest::connect(&net, MERGED, 2);
            guest.send(&frame(1, 100), &[]);
            same(&peer.receive(), &frame(1, 100));
        },
    );
}

#[test]
fn a_device_that_is_removed_ends_it_with_an_error() {
    in_own_namespace(
        "start::a_device_that_is_removed_ends_it_with_an_error",
        || {
            let net = Net::start("--persist");
            let _peer = Peer::new(Offloads::empty());
            let mut guest = Guest::connect(&net, MERGED, 2);
            guest.post_receive(0, 4, 2048);
            guest.config(6);

            ip("link del net0");

            let (status, said) = net.end();
            assert_eq!(status.code(), Some(1), "{said}");
            assert!(
                said.lines().last().unwrap().starts_with("error: ")
                    && said.contains("net0 was removed"),
                "{said}"
            );
        },
    );
}

/// With nothing to receive into, nothing is read that would fail.
#[test]
fn a_device_that_is_removed_is_missed_without_buffers() {
    in_own_namespace(
        "start::a_device_that_is_removed_is_missed_without_buffers",
        || {
            for pairs in [1, 2] {
                let net = Net::start(&format!("--persist --num-queues {pairs}"));
                let mut guest = Guest::connect(&net, MERGED, 2 * pairs);
                guest.config(6);

                ip("link del net0");

                let (status, said) = net.end();
                assert_eq!(status.code(), Some(1), "{said}");
                let last = said.lines().last().unwrap();
                assert!(last.starts_with("error: "), "{said}");
                assert!(said.contains("net0 was removed"), "{said}");
            }
        },
    );
}

#[test]
fn a_device_that_is_removed_while_nobody_is_connected_ends_it_at_once() {
    in_own_namespace(
        "start::a_device_that_is_removed_while_nobody_is_connected_ends_it_at_once",
        || {
            for options in ["", "--persist", "--persist --num-queues 2"] {
                let mut never = Net::start(options);
                // Frames that nobody reads do not end it.
                let peer = Peer::new(Offloads::empty());
                (0..20).for_each(|number| peer.send(&frame(number, 100)));
                assert_still_waits(&mut never);
                ip("link del net0");
                removed(never);
                ip("link del br0");
            }
            for pairs in [1, 2] {
                let mut before = Net::start(&format!("--persist --num-queues {pairs}"));
                let mut guest = Guest::connect(&before, MERGED, 2 * pairs);
                guest.config(6);
                drop(guest);
                assert_still_waits(&mut before);
                ip("link del net0");
                removed(before);
            }
        },
    );
}

/// It has not ended.
fn assert_still_waits(net: &mut Net) {
    std::thread::sleep(std::time::Duration::from_millis(50));
    if let Some(status) = net.child.try_wait().unwrap() {
        panic!("it has ended with {status}: {}", net.said());
    }
}

fn removed(net: Net) {
    let (status, said) = net.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.starts_with("error: ") && said.contains("net0 was removed"),
        "{said}"
    );
}

#[test]
fn a_frontend_is_accepted_once_there_is_a_descriptor_for_it() {
    in_own_namespace(
        "start::a_frontend_is_accepted_once_there_is_a_descriptor_for_it",
        || {
            let mut net = Net::start("");
            allow_files(&net.child, 3);
            let stream = std::os::unix::net::UnixStream::connect(&net.socket).unwrap();
            let start = std::time::Instant::now();
            while start.elapsed() < std::time::Duration::from_secs(1) {
                assert_still_waits(&mut net);
            }
            assert!(processor_time(&net.child) < std::time::Duration::from_millis(200));

            allow_files(&net.child, 1024);

            let mut guest = Guest::on_stream(stream, MERGED, 2);
            guest.config(6);
            drop(guest);
            let (status, said) = net.end();
            assert_eq!(status.code(), Some(0), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
            assert!(
                said.starts_with("warning: cannot accept a frontend: "),
                "{said}"
            );
        },
    );
}

#[test]
fn what_cannot_be_is_named_in_one_line() {
    in_own_namespace("start::what_cannot_be_is_named_in_one_line", || {
        let _busy = Tap::open(&InterfaceName::new("busy0").unwrap(), Options::empty()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("net.sock");
        let socket = socket.to_str().unwrap();
        let nowhere = folder.path().join("helper.sock");
        let nowhere = nowhere.to_str().unwrap();
        for (arguments, status, why) in [
            (
                &["--tap", "abcdefghijklmnop"][..],
                2,
                "longer than 15 bytes",
            ),
            (&["--tap", ""], 2, "is empty"),
            (&[], 2, "no TAP device is given"),
            (&["--tap", "a", "--network", "b"], 2, "cannot be used with"),
            (
                &["--tap", "net0", "--mac", "ff:ff:ff:ff:ff:ff"],
                2,
                "is not a MAC address",
            ),
            (&["--tap", "net0", "--mtu", "67"], 2, "67"),
            (&["--tap", "net0", "--num-queues", "0"], 2, "0"),
            (
                &["--tap-fd", "0,0", "--num-queues", "3"],
                2,
                "--num-queues must be the same",
            ),
            (&["--tap-fd", "0"], 1, "--tap-fd 0: "),
            (&["--tap-fd", "77"], 1, "--tap-fd 77: "),
            (&["--tap", "lo"], 1, "lo is not a TAP device"),
            (&["--tap", "busy0"], 1, "cannot attach to TAP device busy0"),
            (
                &["--network", "default", "--helper-socket", nowhere],
                1,
                "bulkhead-net-helper is not running: nothing listens on /",
            ),
            (
                &["--network", "lab", "--helper-socket", nowhere],
                1,
                "--network name=lab,subnet=SUBNET,bridge=BRIDGE), or name the socket of another with --helper-socket",
            ),
        ] {
            let line = refused(&[&["--socket-path", socket], arguments].concat(), status);
            assert!(line.contains(why), "{arguments:?}: {line}");
            assert!(!std::path::Path::new(socket).exists());
        }
    });
}

#[test]
fn capabilities_are_printed_as_the_conventions_have_it() {
    let output = program().arg("--print-capabilities").output().unwrap();
    assert!(output.status.success());
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["type"], "net");
}
