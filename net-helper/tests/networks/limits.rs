//! What the helper does when it has no more descriptors.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bulkhead_net_protocol::{Client, TapRequest};
use bulkhead_test_frontend::program::{allow_files, processor_time};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::host::{Helper, eventually, on_own_host};

/// Connects until the helper has as many connections as it can have, and as many wait.
fn flood(helper: &Helper) -> Vec<OwnedFd> {
    let address = SocketAddrUnix::new(&helper.socket).unwrap();
    let mut all = Vec::new();
    while all.len() < 300 {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        match connect(&socket, &address) {
            Ok(()) => all.push(socket),
            Err(Errno::AGAIN) => return all,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("nobody has to wait");
}

#[test]
fn a_flood_of_connections_keeps_neither_the_processor_nor_clients_that_are_there() {
    on_own_host(
        "limits::a_flood_of_connections_keeps_neither_the_processor_nor_clients_that_are_there",
        || {
            let folder = tempfile::tempdir().unwrap();
            let said = folder.path().join("said");
            let helper = Helper::start_writing(&said, folder.path(), "--network dhcp=off");
            let (early, late) = (
                Client::connect(&helper.socket).unwrap(),
                Client::connect(&helper.socket).unwrap(),
            );
            let early = early.request_hold().unwrap().finish().unwrap();
            allow_files(&helper.child, 40);

            let crowd = flood(&helper);
            let full = || std::fs::read_to_string(&said).unwrap().contains("accept");
            eventually("the helper cannot accept a client", full);
            let (start, used) = (Instant::now(), processor_time(&helper.child));
            while start.elapsed() < Duration::from_secs(2) {
                std::thread::sleep(Duration::from_millis(50));
            }
            let used = processor_time(&helper.child) - used;

            assert!(used < Duration::from_millis(200), "{used:?} of 2 seconds");
            let late = late.request_hold().unwrap().finish().unwrap();
            let text = std::fs::read_to_string(&said).unwrap();
            assert_eq!(
                text.matches("cannot accept a client: ").count(),
                1,
                "{text}"
            );
            drop(crowd);
            helper.lease(&TapRequest::on("default")).unwrap();
            drop((early, late));
            allow_files(&helper.child, 4096);
            helper.stop();
        },
    );
}
