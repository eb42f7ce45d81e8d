//! TAP devices of this kernel, each test in a network namespace of its own.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed
use std::process::Command;

use rustix::io::{Errno, read, write};
use tap::{ErrorKind, InterfaceName, Offloads, Options, Tap};

/// Runs `body` in a fresh network namespace: the test program starts itself again under `unshare`, for this one test.
fn in_own_namespace(test: &str, body: impl FnOnce()) {
    const INSIDE: &str = "TAP_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let probe = Command::new("unshare")
        .args(["-rn", "test", "-w", "/dev/net/tun"])
        .output();
    if !probe.is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: {test}: no network namespace or no /dev/net/tun here");
        return;
    }
    let status = Command::new("unshare")
        .arg("-rn")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

fn name(text: &str) -> InterfaceName {
    InterfaceName::new(text).unwrap()
}

fn ip(args: &str) {
    assert!(
        Command::new("ip")
            .args(args.split(' '))
            .status()
            .unwrap()
            .success(),
        "ip {args}"
    );
}

fn exists(interface: &str) -> bool {
    std::fs::read_to_string("/proc/net/dev")
        .unwrap()
        .contains(&format!("{interface}:"))
}

#[test]
fn an_interface_lives_as_long_as_its_last_queue() {
    in_own_namespace("an_interface_lives_as_long_as_its_last_queue", || {
        let first = Tap::open(&name("tap0"), Options::VNET_HDR | Options::MULTI_QUEUE).unwrap();
        let second = first.another_queue().unwrap();
        drop(first);
        assert!(exists("tap0"));
        assert_eq!(second.name().as_str(), "tap0");
        drop(second);
        assert!(!exists("tap0"));
    });
}

#[test]
fn mac_and_mtu_are_what_was_set() {
    in_own_namespace("mac_and_mtu_are_what_was_set", || {
        let tap = Tap::open(&name("tap0"), Options::empty()).unwrap();
        tap.set_mac([0xfe, 0x54, 0, 1, 2, 3]).unwrap();
        tap.set_mtu(9000).unwrap();
        assert_eq!(tap.mac().unwrap(), [0xfe, 0x54, 0, 1, 2, 3]);
        assert_eq!(tap.mtu().unwrap(), 9000);
        assert!(tap.set_mtu(u32::MAX).is_err());
    });
}

#[test]
fn created_interfaces_get_the_first_free_number() {
    in_own_namespace("created_interfaces_get_the_first_free_number", || {
        let zero = Tap::create(&name("guest"), Options::VNET_HDR).unwrap();
        let one = Tap::create(&name("guest"), Options::VNET_HDR).unwrap();
        assert_eq!(
            (zero.name().as_str(), one.name().as_str()),
            ("guest0", "guest1")
        );
    });
}

#[test]
fn an_interface_in_use_is_busy_and_another_kind_is_a_mismatch() {
    in_own_namespace(
        "an_interface_in_use_is_busy_and_another_kind_is_a_mismatch",
        || {
            let _held = Tap::open(&name("tap0"), Options::empty()).unwrap();
            assert_eq!(
                Tap::open(&name("tap0"), Options::empty())
                    .unwrap_err()
                    .kind(),
                ErrorKind::Busy
            );
            assert_eq!(
                Tap::open(&name("lo"), Options::empty()).unwrap_err().kind(),
                ErrorKind::Mismatch
            );
            ip("tuntap add dev tun0 mode tun");
            assert_eq!(
                Tap::open(&name("tun0"), Options::empty())
                    .unwrap_err()
                    .kind(),
                ErrorKind::Mismatch
            );
        },
    );
}

#[test]
fn a_file_that_is_no_tap_is_refused() {
    in_own_namespace("a_file_that_is_no_tap_is_refused", || {
        for path in ["/dev/null", "/dev/net/tun", "/proc/self/exe"] {
            let file = std::fs::File::open(path).unwrap();
            assert_eq!(
                Tap::from_fd(file.into()).unwrap_err().kind(),
                ErrorKind::Mismatch,
                "{path}"
            );
        }
    });
}

#[test]
fn an_inherited_file_knows_its_interface_and_options() {
    in_own_namespace("an_inherited_file_knows_its_interface_and_options", || {
        let opened = Tap::open(&name("tap0"), Options::VNET_HDR | Options::MULTI_QUEUE).unwrap();
        let again = Tap::from_fd(opened.into()).unwrap();
        assert_eq!(again.name().as_str(), "tap0");
        assert_eq!(again.options(), Options::VNET_HDR | Options::MULTI_QUEUE);
        assert!(again.another_queue().is_ok());
    });
}

#[test]
fn offloads_that_the_kernel_lacks_are_refused() {
    in_own_namespace("offloads_that_the_kernel_lacks_are_refused", || {
        let tap = Tap::open(&name("tap0"), Options::VNET_HDR).unwrap();
        tap.set_vnet_hdr_len(tap::VNET_HDR_LEN).unwrap();
        assert!(tap.supports_offloads(Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6));
        assert!(!tap.supports_offloads(Offloads::from_bits_retain(1 << 31)));
        assert!(tap.set_vnet_hdr_len(3).is_err());
    });
}

#[test]
fn a_frame_written_to_one_tap_is_read_from_another_on_the_same_bridge() {
    in_own_namespace(
        "a_frame_written_to_one_tap_is_read_from_another_on_the_same_bridge",
        || {
            let a = Tap::open(&name("tap0"), Options::VNET_HDR).unwrap();
            let b = Tap::open(&name("tap1"), Options::VNET_HDR).unwrap();
            for tap in [&a, &b] {
                tap.set_vnet_hdr_len(tap::VNET_HDR_LEN).unwrap();
            }
            assert_eq!(read(&b, &mut [0u8; 64]), Err(Errno::AGAIN), "non-blocking");
            ip("link add br0 type bridge");
            for dev in ["tap0", "tap1"] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{dev}/disable_ipv6"), "1").unwrap();
                ip(&format!("link set {dev} master br0 up"));
            }
            std::fs::write("/proc/sys/net/ipv6/conf/br0/disable_ipv6", "1").unwrap();
            ip("link set br0 up");

            let mut frame = vec![0u8; tap::VNET_HDR_LEN];
            frame.extend([0xff; 6]);
            frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
            frame.extend((0..50u8).collect::<Vec<_>>());
            assert_eq!(write(&a, &frame), Ok(frame.len()));

            let mut poll = [rustix::event::PollFd::new(&b, rustix::event::PollFlags::IN)];
            let timeout = rustix::time::Timespec {
                tv_sec: 5,
                tv_nsec: 0,
            };
            assert_eq!(rustix::event::poll(&mut poll, Some(&timeout)), Ok(1));
            let mut got = [0u8; 2048];
            let n = read(&b, &mut got).unwrap();
            assert_eq!(got[tap::VNET_HDR_LEN..n], frame[tap::VNET_HDR_LEN..]);
        },
    );
}
