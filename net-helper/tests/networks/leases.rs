//! Which TAP device a client's lease gives it, and when the lease ends.

use std::fs::File;
use std::io::{ErrorKind as IoErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use bulkhead_mac::MacAddr;
use bulkhead_net_protocol::{
    AddressRequest, Channel, Client, ErrorKind, RefusalKind, Reply, Request, TapRequest, decode,
};
use bulkhead_test_frontend::descriptors;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, send, sendmsg, socket_with,
};
use rustix::process::Signal;
use tap::{Options, Tap};

use crate::host::{Guest, Helper, attempt, eventually, on_own_host, run};

fn exists(interface: &str) -> bool {
    attempt(&format!("ip link show {interface}"))
        .status
        .success()
}

#[test]
fn a_lease_is_what_was_asked_for() {
    on_own_host("leases::a_lease_is_what_was_asked_for", || {
        let folder = tempfile::tempdir().unwrap();
        let helper = Helper::start(folder.path(), "--network dhcp=off");
        let mac = "52:54:00:00:00:07".parse().unwrap();
        let request = TapRequest {
            network: "default".into(),
            mac: Some(mac),
            queues: 3,
            mtu: Some(9000),
        };

        let lease = helper.lease(&request).unwrap();

        assert_eq!(
            (lease.info.mac, lease.info.mtu, lease.info.bridge.as_str()),
            (mac, 9000, "bulkhead0")
        );
        assert_eq!(
            lease.info.subnet.unwrap().gateway.to_string(),
            "192.168.124.1"
        );
        assert_eq!(lease.queues.len(), 3);
        let queues: Vec<_> = lease
            .queues
            .into_iter()
            .map(|queue| Tap::from_fd(queue).unwrap())
            .collect();
        for queue in &queues {
            assert_eq!(queue.name().as_str(), lease.info.interface);
            assert_eq!(queue.options(), Options::VNET_HDR | Options::MULTI_QUEUE);
            assert_eq!(queue.mtu().unwrap(), 9000);
            assert_ne!(
                queue.mac().unwrap(),
                mac.octets(),
                "the host's end is not the guest's"
            );
        }
        let shown = run(&format!("ip link show {}", lease.info.interface));
        assert!(
            shown.contains("master bulkhead0") && shown.contains("UP"),
            "{shown}"
        );
        helper.stop();
    });
}

#[test]
fn a_guests_addresses_are_those_that_dnsmasq_has_given_it() {
    on_own_host(
        "leases::a_guests_addresses_are_those_that_dnsmasq_has_given_it",
        || {
            let folder = tempfile::tempdir().unwrap();
            let networks =
                "--network default --network name=lab,bridge=lab0,subnet=10.77.0.0/24,dhcp=off";
            let helper = Helper::start(folder.path(), networks);
            let guest = Guest::new(&helper, &TapRequest::on("default"));
            let asked = |network: &str, mac: MacAddr| {
                let network = network.to_owned();
                Client::connect(&helper.socket)?.request_addresses(&AddressRequest { network, mac })
            };
            let mac = guest.lease.info.mac;
            assert!(asked("default", mac).unwrap().addresses.is_empty());

            let said = guest.dhcp(folder.path());

            let found = asked("default", mac).unwrap();
            assert_eq!(found.prefix, 24);
            let [address] = found.addresses[..] else {
                panic!("{found:?}");
            };
            assert!(
                said.contains(&format!("ip={address} ")),
                "{address}: {said}"
            );
            // Whoever does not know the MAC address, or names another network, learns nothing.
            let other = "52:54:00:00:00:99".parse().unwrap();
            assert!(asked("default", other).unwrap().addresses.is_empty());
            assert!(asked("lab", mac).unwrap().addresses.is_empty());
            let error = asked("no", mac).unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::Refused(RefusalKind::UnknownNetwork)
            );
            drop(guest);
            helper.stop();
        },
    );
}

#[test]
fn an_mtu_too_small_for_ipv6_can_be_had() {
    on_own_host("leases::an_mtu_too_small_for_ipv6_can_be_had", || {
        let folder = tempfile::tempdir().unwrap();
        let helper = Helper::start(folder.path(), "--network dhcp=off");
        let lease = helper
            .lease(&TapRequest {
                mtu: Some(576),
                ..TapRequest::on("default")
            })
            .unwrap();
        let queue = Tap::from_fd(lease.queues.into_iter().next().unwrap()).unwrap();
        assert_eq!(queue.mtu().unwrap(), 576);
        helper.stop();
    });
}

#[test]
fn the_device_goes_with_the_connection_even_if_its_file_is_kept() {
    on_own_host(
        "leases::the_device_goes_with_the_connection_even_if_its_file_is_kept",
        || {
            let folder = tempfile::tempdir().unwrap();
            let helper = Helper::start(folder.path(), "--network dhcp=off");
            let lease = helper.lease(&TapRequest::on("default")).unwrap();
            let interface = lease.info.interface.clone();
            assert!(exists(&interface));

            drop(lease.connection);

            eventually("the TAP device is taken back", || !exists(&interface));
            let error = rustix::io::read(&lease.queues[0], &mut [0u8; 2048]).unwrap_err();
            assert_eq!(error, rustix::io::Errno::BADFD);
            helper.stop();
        },
    );
}

#[test]
fn an_interface_of_another_with_the_number_of_a_leased_device_stays() {
    let test = "leases::an_interface_of_another_with_the_number_of_a_leased_device_stays";
    on_own_host(test, || {
        let folder = tempfile::tempdir().unwrap();
        let helper = Helper::start(folder.path(), "--network dhcp=off");
        let replaced = |name: &str| {
            let lease = helper.lease(&TapRequest::on("default")).unwrap();
            let tap = &lease.info.interface;
            let index = run(&format!("ip -o link show dev {tap} | cut -d: -f1"));
            run(&format!(
                "ip link del {tap} && ip link add {name} index {} type bridge",
                index.trim()
            ));
            lease
        };
        drop(replaced("mine0"));
        // Several at once.
        let others = ["mine1", "mine2"].map(replaced);
        let last = helper.lease(&TapRequest::on("default")).unwrap();
        let kept = replaced("mine3");
        helper.signal(Signal::STOP);
        let tap = last.info.interface.clone();
        drop((others, last));
        helper.signal(Signal::CONT);
        eventually("the device is gone", || !exists(&tap));
        // At the end of the helper.
        helper.stop();
        drop(kept);
        for name in ["mine0", "mine1", "mine2", "mine3"] {
            assert!(exists(name), "{name}");
        }
    });
}

#[test]
fn requests_that_cannot_be_met_are_refused_with_a_reason() {
    on_own_host(
        "leases::requests_that_cannot_be_met_are_refused_with_a_reason",
        || {
            let folder = tempfile::tempdir().unwrap();
            let helper = Helper::start(folder.path(), "--network dhcp=off");
            let mac = Some("52:54:00:00:00:07".parse().unwrap());
            let _held = helper
                .lease(&TapRequest {
                    mac,
                    ..TapRequest::on("default")
                })
                .unwrap();
            let on = TapRequest::on("default");
            for (request, kind, why) in [
                (
                    TapRequest::on("lan"),
                    RefusalKind::UnknownNetwork,
                    "no network \"lan\"; it has default",
                ),
                (
                    TapRequest {
                        queues: 0,
                        ..on.clone()
                    },
                    RefusalKind::Invalid,
                    "0 queues",
                ),
                (
                    TapRequest {
                        queues: 17,
                        ..on.clone()
                    },
                    RefusalKind::Invalid,
                    "17 queues",
                ),
                (
                    TapRequest {
                        mtu: Some(67),
                        ..on.clone()
                    },
                    RefusalKind::Invalid,
                    "MTU of 67",
                ),
                (
                    TapRequest {
                        mtu: Some(65535),
                        ..on.clone()
                    },
                    RefusalKind::Invalid,
                    "MTU of 65535",
                ),
                (
                    TapRequest { mac, ..on },
                    RefusalKind::Invalid,
                    "52:54:00:00:00:07 is in use",
                ),
            ] {
                let error = helper.lease(&request).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Refused(kind), "{error}");
                assert!(error.to_string().contains(why), "{error}");
            }
            assert_eq!(
                run("ip -o link | grep -c bhtap").trim(),
                "1",
                "nothing was made for them"
            );
            helper.stop();
        },
    );
}

/// A connection for messages that the client library does not send.
fn rude(helper: &Helper) -> Channel {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    connect(&socket, &SocketAddrUnix::new(&helper.socket).unwrap()).unwrap();
    Channel::new(socket)
}

#[test]
fn nonsense_closes_its_connection_and_harms_nobody_else() {
    on_own_host(
        "leases::nonsense_closes_its_connection_and_harms_nobody_else",
        || {
            let folder = tempfile::tempdir().unwrap();
            let helper = Helper::start(folder.path(), "--network dhcp=off");
            let polite = helper.lease(&TapRequest::on("default")).unwrap();
            for nonsense in [
                &b"{"[..],
                b"\0",
                &[b'['; 4096],
                &[b' '; 8192],
                br#"{"version":2,"body":null}"#,
            ] {
                let channel = rude(&helper);
                rustix::net::send(&channel, nonsense, rustix::net::SendFlags::empty()).unwrap();
                if let Some(packet) = channel.receive().unwrap() {
                    assert!(matches!(decode(&packet.bytes), Ok(Reply::Refused(_))));
                    assert!(channel.receive().unwrap().is_none());
                }
            }
            // Files with a request, which has none.
            let channel = rude(&helper);
            let null = File::open("/dev/null").unwrap();
            send_files(&channel, &[null.as_fd(); 4]);
            assert!(matches!(
                decode(&channel.receive().unwrap().unwrap().bytes),
                Ok(Reply::Refused(_))
            ));

            assert!(exists(&polite.info.interface));
            helper.lease(&TapRequest::on("default")).unwrap();
            helper.stop();
        },
    );
}

/// A file whose last copy takes a minute to close.
fn lingering() -> OwnedFd {
    let (file, reader) = descriptors::lingering(Duration::from_secs(60));
    std::mem::forget(reader);
    file
}

/// Sends a message that is no request, with files. Returns whether the kernel let the files through to the helper.
fn send_files(channel: &Channel, files: &[BorrowedFd<'_>]) -> bool {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(files)));
    let flags = SendFlags::empty();
    let sent = sendmsg(channel, &[IoSlice::new(b"{}")], &mut control, flags);
    let is_refused = sent == Err(Errno::PERM);
    match is_refused {
        true => send(channel, b"{}", flags).unwrap(),
        false => sent.unwrap(),
    };
    !is_refused
}

/// Closes this process's copy of a file, so that the helper has the last one, if it was sent one.
fn leave(file: OwnedFd, is_sent: bool) {
    match is_sent {
        true => drop(file),
        // Whoever closes the last copy waits.
        false => std::mem::forget(file),
    }
}

#[test]
fn files_that_take_long_to_close_keep_nobody_waiting() {
    on_own_host(
        "leases::files_that_take_long_to_close_keep_nobody_waiting",
        || {
            let folder = tempfile::tempdir().unwrap();
            let helper = Helper::start(folder.path(), "--network dhcp=off");
            for count in [1, 16, 17, 33, 253] {
                let start = Instant::now();
                // The helper receives the file, or leaves it in the socket.
                let (read, unread) = (rude(&helper), rude(&helper));
                let file = lingering();
                send_files(&read, &vec![file.as_fd(); count]);
                let request = Request::Tap(TapRequest::on("default"));
                unread.send(&request, &[]).unwrap();
                unread.receive().unwrap().unwrap();
                send_files(&unread, &vec![file.as_fd(); count]);
                if count > 1 {
                    // The client closes the connection before it receives the answer.
                    let mut answered = [PollFd::new(&unread, PollFlags::IN)];
                    poll(&mut answered, None).unwrap();
                }
                // The file comes after an empty message, which looks like the end of the connection.
                let empty = rude(&helper);
                let nothing = SendFlags::empty();
                let another = lingering();
                helper.signal(Signal::STOP);
                send(&empty, b"", nothing).unwrap();
                let is_sent = send_files(&empty, &vec![another.as_fd(); count]);
                leave(another, is_sent);
                helper.signal(Signal::CONT);
                leave(file, is_sent);
                drop((unread, empty));
                assert!(matches!(
                    decode(&read.receive().unwrap().unwrap().bytes),
                    Ok(Reply::Refused(_))
                ));
                // The second one asks after all that was before the first.
                for _ in 0..2 {
                    helper.lease(&TapRequest::on("default")).unwrap();
                }
                let took = start.elapsed();
                assert!(took < Duration::from_secs(10), "{count}: {took:?}");
            }
            // These messages come so late that the helper ends before it sees them.
            let held = rude(&helper);
            held.send(&Request::Hold, &[]).unwrap();
            held.receive().unwrap().unwrap();
            helper.signal(Signal::STOP);
            let file = lingering();
            let late = [held, rude(&helper)].map(|late| send_files(&late, &[file.as_fd()]));
            leave(file, late == [true; 2]);
            helper.signal(Signal::TERM);
            helper.signal(Signal::CONT);
            let start = Instant::now();
            helper.wait_for_the_end();
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{:?}",
                start.elapsed()
            );
        },
    );
}

#[test]
fn a_second_request_on_a_connection_ends_it() {
    on_own_host("leases::a_second_request_on_a_connection_ends_it", || {
        let folder = tempfile::tempdir().unwrap();
        let helper = Helper::start(folder.path(), "--network dhcp=off");
        let channel = rude(&helper);
        let request = Request::Tap(TapRequest::on("default"));
        channel.send(&request, &[]).unwrap();
        let Reply::Tap(info) = decode(&channel.receive().unwrap().unwrap().bytes).unwrap() else {
            panic!("a lease")
        };

        channel.send(&request, &[]).unwrap();

        assert!(matches!(
            decode(&channel.receive().unwrap().unwrap().bytes),
            Ok(Reply::Refused(_))
        ));
        assert!(channel.receive().unwrap().is_none());
        assert!(!exists(&info.interface));
        helper.stop();
    });
}

#[test]
fn only_root_and_the_sockets_group_may_ask() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    on_own_host("leases::only_root_and_the_sockets_group_may_ask", || {
        let folder = tempfile::tempdir().unwrap();
        let helper = Helper::start(folder.path(), "--network dhcp=off --group nogroup");
        let socket = std::fs::metadata(&helper.socket).unwrap();
        assert_eq!(
            (socket.gid(), socket.permissions().mode() & 0o777),
            (65534, 0o660)
        );

        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let as_group = |gid| {
            let path = helper.socket.display();
            let connect = format!(
                "setpriv --reuid 4711 --regid {gid} --clear-groups socat -u OPEN:/dev/null UNIX-CONNECT:{path},type=5"
            );
            attempt(&connect).status.success()
        };
        assert!(as_group(65534));
        assert!(!as_group(4711));
        helper.stop();
    });
}

#[test]
fn an_idle_helper_ends_by_itself_once_it_was_of_use() {
    on_own_host(
        "leases::an_idle_helper_ends_by_itself_once_it_was_of_use",
        || {
            let folder = tempfile::tempdir().unwrap();
            let before = crate::host::traces(folder.path());
            let mut helper = Helper::start(folder.path(), "--network default --exit-idle");
            // A client that requests nothing does not keep the helper from ending.
            drop(Client::connect(&helper.socket).unwrap());
            let (one, other) = (
                helper.lease(&TapRequest::on("default")).unwrap(),
                helper.lease(&TapRequest::on("default")).unwrap(),
            );

            drop(one);
            eventually("one device is taken back", || {
                run("ip -o link | grep -c bhtap").trim() == "1"
            });
            assert!(
                helper.child.try_wait().unwrap().is_none(),
                "another has its device still"
            );
            drop(other);
            // As a client whose process died and was started again does.
            eventually("the other is taken back", || {
                !run("ip -o link").contains("bhtap")
            });
            let again = helper.lease(&TapRequest::on("default")).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(1200));
            assert!(
                helper.child.try_wait().unwrap().is_none(),
                "it was not idle for long"
            );
            drop(again);

            assert!(helper.child.wait().unwrap().success());
            assert_eq!(
                Client::connect(&helper.socket).unwrap_err().kind(),
                ErrorKind::NotRunning
            );
            assert_eq!(
                std::fs::metadata(&helper.socket).unwrap_err().kind(),
                IoErrorKind::NotFound
            );
            assert_eq!(crate::host::traces(folder.path()), before);
        },
    );
}

#[test]
fn a_hold_keeps_an_idle_helper_and_the_last_to_give_it_back_sees_the_end() {
    const TIMEOUT: std::time::Duration = crate::host::TIMEOUT;
    on_own_host(
        "leases::a_hold_keeps_an_idle_helper_and_the_last_to_give_it_back_sees_the_end",
        || {
            let folder = tempfile::tempdir().unwrap();
            let before = crate::host::traces(folder.path());
            let mut helper = Helper::start(folder.path(), "--network default --exit-idle");
            let hold = || {
                let client = Client::connect(&helper.socket).unwrap();
                client.request_hold().unwrap().finish().unwrap()
            };
            let (one, other) = (hold(), hold());
            let lease = helper.lease(&TapRequest::on("default")).unwrap();

            assert!(!one.release(TIMEOUT).unwrap(), "another is there");
            drop(lease);
            std::thread::sleep(std::time::Duration::from_millis(1500));
            assert!(helper.child.try_wait().unwrap().is_none(), "it is held");
            assert!(other.release(TIMEOUT).unwrap());

            assert_eq!(crate::host::traces(folder.path()), before);
            assert!(helper.child.wait().unwrap().success());
        },
    );
}

#[test]
fn guests_of_a_helper_that_was_killed_keep_the_next_one() {
    on_own_host(
        "leases::guests_of_a_helper_that_was_killed_keep_the_next_one",
        || {
            let folder = tempfile::tempdir().unwrap();
            let helper = Helper::start(folder.path(), "--network dhcp=off --exit-idle");
            let adopted = helper.lease(&TapRequest::on("default")).unwrap();
            helper.kill();
            let mut helper = Helper::start(folder.path(), "--network dhcp=off --exit-idle");
            let own = helper.lease(&TapRequest::on("default")).unwrap();

            drop(own);
            std::thread::sleep(std::time::Duration::from_millis(2500));

            assert!(exists(&adopted.info.interface));
            assert!(
                helper.child.try_wait().unwrap().is_none(),
                "a guest is there"
            );
            drop(adopted);
            assert!(helper.child.wait().unwrap().success());
        },
    );
}
