//! What guests reach on a network of each mode, and how they get their addresses.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bulkhead_net_protocol::TapRequest;

use crate::host::{
    DhcpProcesses, Guest, Helper, TIMEOUT, dnsmasqs, eventually, on_own_host, run, status, world,
};
use crate::stopped::Stopped;

fn guest(helper: &Helper, network: &str) -> Guest {
    Guest::new(helper, &TapRequest::on(network))
}

fn has_address(said: &str, prefix: &str) {
    assert!(said.contains(&format!("ip={prefix}")), "{said}");
}

#[test]
fn a_guest_gets_an_address_and_reaches_the_world_by_the_hosts() {
    on_own_host(
        "guests::a_guest_gets_an_address_and_reaches_the_world_by_the_hosts",
        || {
            let folder = tempfile::tempdir().unwrap();
            let world = world();
            let helper = Helper::start(folder.path(), "--network default");
            let guest = guest(&helper, "default");

            let said = guest.dhcp(folder.path());

            has_address(&said, "192.168.124.");
            assert!(
                said.contains("router=192.168.124.1 dns=192.168.124.1"),
                "{said}"
            );
            assert!(guest.can_ping("192.168.124.1"));
            // The world has no way back to the guest's address: it has seen the host's.
            assert!(!world.attempt("ip route get 192.168.124.5").status.success());
            assert!(guest.can_ping("203.0.113.2"));
            helper.stop();
        },
    );
}

#[test]
fn the_world_does_not_reach_a_guest_behind_the_hosts_address() {
    on_own_host(
        "guests::the_world_does_not_reach_a_guest_behind_the_hosts_address",
        || {
            let folder = tempfile::tempdir().unwrap();
            let world = world();
            let helper = Helper::start(folder.path(), "--network dhcp=off");
            let guest = guest(&helper, "default");
            guest.machine.run("ip addr add 192.168.124.9/24 dev eth0");
            guest.machine.run("ip route add default via 192.168.124.1");
            assert!(guest.can_ping("203.0.113.2"));

            world.run("ip route add 192.168.124.0/24 via 203.0.113.1");

            assert!(
                !world
                    .attempt("ping -c 1 -W 1 192.168.124.9")
                    .status
                    .success()
            );
            helper.stop();
        },
    );
}

#[test]
fn a_routed_network_is_reached_by_its_own_addresses() {
    on_own_host(
        "guests::a_routed_network_is_reached_by_its_own_addresses",
        || {
            let folder = tempfile::tempdir().unwrap();
            let world = world();
            world.run("ip route add 10.77.0.0/24 via 203.0.113.1");
            let helper = Helper::start(
                folder.path(),
                "--network name=lab,mode=routed,subnet=10.77.0.0/24",
            );
            let guest = guest(&helper, "lab");

            let said = guest.dhcp(folder.path());
            has_address(&said, "10.77.0.");
            let address = said
                .lines()
                .find_map(|l| l.strip_prefix("ip=")?.split(' ').next())
                .unwrap();

            world.run(&format!("ping -c 1 -W 2 {address}"));
            assert!(guest.can_ping("203.0.113.2"));
            helper.stop();
        },
    );
}

#[test]
fn an_isolated_guest_reaches_the_host_and_nobody_else() {
    on_own_host(
        "guests::an_isolated_guest_reaches_the_host_and_nobody_else",
        || {
            let folder = tempfile::tempdir().unwrap();
            let _world = world();
            // The other network has the host forward packets.
            let networks = "--network default --network name=island,bridge=island0,subnet=10.78.0.0/24,mode=isolated";
            let helper = Helper::start(folder.path(), networks);
            let guest = guest(&helper, "island");

            let said = guest.dhcp(folder.path());

            has_address(&said, "10.78.0.");
            assert!(said.contains("router= "), "{said}");
            assert!(guest.can_ping("10.78.0.1"));
            guest.machine.run("ip route add default via 10.78.0.1");
            assert!(!guest.can_ping("203.0.113.2"));
            helper.stop();
        },
    );
}

#[test]
fn a_guest_with_an_address_of_another_network_reaches_nobody_through_the_host() {
    on_own_host(
        "guests::a_guest_with_an_address_of_another_network_reaches_nobody_through_the_host",
        || {
            let folder = tempfile::tempdir().unwrap();
            let world = world();
            world.run("ip route add 10.99.0.0/24 via 203.0.113.1");
            let helper = Helper::start(folder.path(), "--network dhcp=off");
            let guest = guest(&helper, "default");
            guest.machine.run("ip addr add 10.99.0.9/24 dev eth0");
            guest.machine.run("ip route add 192.168.124.1 dev eth0");
            guest.machine.run("ip route add default via 192.168.124.1");
            run("ip route add 10.99.0.0/24 dev bulkhead0");

            assert!(!guest.can_ping("203.0.113.2"));
            helper.stop();
        },
    );
}

#[test]
fn guests_of_one_network_reach_each_other() {
    on_own_host("guests::guests_of_one_network_reach_each_other", || {
        let folder = tempfile::tempdir().unwrap();
        let helper = Helper::start(folder.path(), "--network dhcp=off");
        let (one, other) = (guest(&helper, "default"), guest(&helper, "default"));
        one.machine.run("ip addr add 192.168.124.11/24 dev eth0");
        other.machine.run("ip addr add 192.168.124.12/24 dev eth0");

        assert!(one.can_ping("192.168.124.12"));
        helper.stop();
    });
}

#[test]
fn a_bridge_of_somebody_else_is_joined_and_left_alone() {
    on_own_host(
        "guests::a_bridge_of_somebody_else_is_joined_and_left_alone",
        || {
            let folder = tempfile::tempdir().unwrap();
            run(
                "ip link add br7 type bridge && ip addr add 10.7.0.1/24 dev br7 && ip link set br7 up",
            );
            let before = crate::host::traces(folder.path());
            let helper = Helper::start(folder.path(), "--network name=lan,mode=bridge,bridge=br7");
            let guest = guest(&helper, "lan");
            assert_eq!(guest.lease.info.bridge, "br7");
            assert_eq!(guest.lease.info.subnet, None);
            guest.machine.run("ip addr add 10.7.0.9/24 dev eth0");
            assert!(guest.can_ping("10.7.0.1"));

            helper.stop();

            assert_eq!(crate::host::traces(folder.path()), before);
        },
    );
}

#[test]
fn dhcp_comes_back_when_dnsmasq_dies() {
    on_own_host("guests::dhcp_comes_back_when_dnsmasq_dies", || {
        let folder = tempfile::tempdir().unwrap();
        let helper = Helper::start(folder.path(), "");
        let [first] = dnsmasqs()[..] else {
            panic!("one dnsmasq")
        };

        run(&format!("kill -9 {first}"));

        eventually("another dnsmasq", || {
            dnsmasqs().iter().any(|&pid| pid != first)
        });
        has_address(
            &guest(&helper, "default").dhcp(folder.path()),
            "192.168.124.",
        );
        helper.stop();
        assert!(dnsmasqs().is_empty());
    });
}

#[test]
fn dnsmasq_and_what_starts_it_can_do_nothing_but_serve() {
    on_own_host(
        "guests::dnsmasq_and_what_starts_it_can_do_nothing_but_serve",
        || {
            let folder = tempfile::tempdir().unwrap();
            let helper = Helper::start(folder.path(), "");
            let processes = DhcpProcesses::wait_for(&[]);
            let none = format!("{:016x}", 0);
            for pid in processes.all() {
                let fields = ["NoNewPrivs", "Seccomp", "CapEff"].map(|field| status(pid, field));
                assert_eq!(fields, ["1", "2", &none], "{processes:?} {pid}");
                assert_ne!(namespace(pid, "mnt"), namespace(helper_pid(&helper), "mnt"));
                assert_ne!(namespace(pid, "ipc"), namespace(helper_pid(&helper), "ipc"));
                let root = run(&format!("ls /proc/{pid}/root"));
                assert!(!root.contains("home") && !root.contains("proc"), "{root}");
            }
            for pid in [processes.dnsmasq, processes.init] {
                assert!(!status(pid, "Uid").contains('0'), "{processes:?}");
                assert_ne!(namespace(pid, "pid"), namespace(helper_pid(&helper), "pid"));
            }
            assert_eq!(status(processes.dnsmasq, "CapPrm"), none);

            let guest = guest(&helper, "default");
            has_address(&guest.dhcp(folder.path()), "192.168.124.");
            // version.bind, of class CHAOS: what dnsmasq answers by itself.
            let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07version\x04bind\0\0\x10\0\x03";
            let answered = |bytes: &[u8]| bytes.windows(8).any(|w| w == b"dnsmasq-");
            let socket = guest.machine.udp("0.0.0.0:0");
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.send_to(query, "192.168.124.1:53").unwrap();
            let mut answer = [0; 512];
            let length = socket.recv(&mut answer).unwrap();
            assert!(answered(&answer[..length]), "by UDP");
            let answer = guest.machine.within(move || {
                let mut stream = TcpStream::connect("192.168.124.1:53").unwrap();
                stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                stream
                    .write_all(&[&[0, query.len() as u8], &query[..]].concat())
                    .unwrap();
                let mut answer = vec![0; 512];
                let length = stream.read(&mut answer).unwrap();
                answer.truncate(length);
                answer
            });
            assert!(answered(&answer), "by TCP");
            if has_landlock_for_signals() {
                processes.all().into_iter().for_each(reaches_nothing);
                for pid in [processes.supervisor, processes.standby] {
                    let stopped = Stopped::attach(pid as u32, "supervisor").unwrap();
                    let test = u64::from(std::process::id());
                    let signalled = stopped.call(libc::SYS_kill, [test, 0, 0, 0]);
                    assert_eq!(signalled, -i64::from(libc::EPERM), "no signal to others");
                }
            }
            guest.machine.run("ip addr flush dev eth0");
            has_address(&guest.dhcp(folder.path()), "192.168.124.");
            assert_eq!(
                DhcpProcesses::wait_for(&[]).all(),
                processes.all(),
                "none had to be started again"
            );
            helper.stop();
        },
    );
}

/// Files have rules since Linux 5.13, TCP ports since 6.7, signals since 6.12.
fn has_landlock_for_signals() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next(), numbers.next());
    let has = version >= (Some(6), Some(12));
    if !has {
        eprintln!("skipped: what Landlock refuses: Linux {release}");
    }
    has
}

/// An intruder in it starts no program, makes no file, and reaches no port but those of DNS.
fn reaches_nothing(pid: i32) {
    let stopped = Stopped::attach(pid as u32, "guests").unwrap();
    let refused = |what: &str, result: i64, errors: &[i32]| {
        let errors: Vec<_> = errors.iter().map(|&error| -i64::from(error)).collect();
        assert!(errors.contains(&result), "{pid}: {what}: {result}");
    };
    let only_landlock = &[libc::EACCES][..];
    let program = stopped.put(0, b"/usr/bin/true");
    let started = stopped.call(libc::SYS_execve, [program, 0, 0, 0]);
    refused("execve", started, only_landlock);
    let (here, file) = (libc::AT_FDCWD as u64, stopped.put(1, b"/etc/bulkhead-test"));
    let flags = (libc::O_CREAT | libc::O_WRONLY) as u64;
    let made = stopped.call(libc::SYS_openat, [here, file, flags, 0o600]);
    refused("a new file", made, &[libc::EACCES, libc::EROFS]);
    let (family, kind) = (libc::AF_INET as u64, libc::SOCK_STREAM as u64);
    let socket = stopped.call(libc::SYS_socket, [family, kind, 0, 0]);
    assert!(socket >= 0, "{pid}: {socket}");
    // sockaddr_in: 127.0.0.1:8080.
    let address = [
        &[2, 0],
        &8080u16.to_be_bytes()[..],
        &[127, 0, 0, 1],
        &[0; 8],
    ]
    .concat();
    let address = stopped.put(2, &address);
    for (what, call) in [("connect", libc::SYS_connect), ("bind", libc::SYS_bind)] {
        let result = stopped.call(call, [socket as u64, address, 16, 0]);
        refused(what, result, only_landlock);
    }
    assert_eq!(stopped.call(libc::SYS_close, [socket as u64, 0, 0, 0]), 0);
}

fn helper_pid(helper: &Helper) -> i32 {
    helper.child.id() as i32
}

fn namespace(pid: i32, kind: &str) -> std::path::PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

#[test]
fn an_intruder_in_the_helper_reaches_its_folder_and_no_other_file() {
    on_own_host(
        "guests::an_intruder_in_the_helper_reaches_its_folder_and_no_other_file",
        || {
            let folder = tempfile::tempdir().unwrap();
            let neighbour = folder.path().join("other-guest.sock");
            let _listener = std::os::unix::net::UnixListener::bind(&neighbour).unwrap();
            let helper = Helper::start(folder.path(), "--network dhcp=off");
            let pid = helper_pid(&helper);
            let test = std::process::id() as i32;
            for kind in ["mnt", "ipc"] {
                assert_ne!(namespace(pid, kind), namespace(test, kind), "{kind}");
            }
            assert_eq!(namespace(pid, "net"), namespace(test, "net"));
            let root = run(&format!("find /proc/{pid}/root/ -not -type d | sort"));
            let own = folder.path().join("net-helper");
            let names: Vec<_> = root
                .lines()
                .map(|l| l.split("/root").nth(1).unwrap())
                .collect();
            let in_own = |name: &&str| name.starts_with(own.to_str().unwrap());
            let others: Vec<_> = names.iter().filter(|name| !in_own(name)).collect();
            assert_eq!(others, [&"/dev/net/tun"], "{root}");

            let stopped = Stopped::attach(pid as u32, "guests").unwrap();
            let path = |slot, path: &Path| stopped.put(slot, path.as_os_str().as_bytes());
            let here = libc::AT_FDCWD as u64;
            let refused = [libc::EACCES, libc::EPERM, libc::ENOENT, libc::EROFS];
            let files = [
                neighbour.as_path(),
                &helper.socket,
                Path::new("/etc/passwd"),
            ];
            for (slot, file) in (0..).zip(files) {
                let name = path(slot, file);
                for (call, arguments) in [
                    (libc::SYS_unlink, [name, 0, 0, 0]),
                    (libc::SYS_unlinkat, [here, name, 0, 0]),
                    (libc::SYS_rmdir, [name, 0, 0, 0]),
                    (libc::SYS_openat, [here, name, libc::O_RDONLY as u64, 0]),
                    (libc::SYS_openat, [here, name, libc::O_CREAT as u64, 0o600]),
                    (libc::SYS_execve, [name, 0, 0, 0]),
                ] {
                    let result = stopped.call(call, arguments);
                    let is_refused = refused.iter().any(|&error| result == -i64::from(error));
                    assert!(is_refused, "{}: call {call}: {result}", file.display());
                }
            }
            let signalled = stopped.call(libc::SYS_kill, [test as u64, 0, 0, 0]);
            assert_eq!(signalled, -i64::from(libc::EPERM));
            drop(stopped);

            helper.lease(&TapRequest::on("default")).unwrap();
            assert!(neighbour.exists() && helper.socket.exists());
            helper.stop();
            let left = run(&format!("ls {}", folder.path().display()));
            assert_eq!(left, "other-guest.sock\n");
        },
    );
}

#[test]
fn the_helper_keeps_one_capability() {
    on_own_host("guests::the_helper_keeps_one_capability", || {
        let folder = tempfile::tempdir().unwrap();
        let helper = Helper::start(folder.path(), "--network dhcp=off");
        let own = |field| status(helper_pid(&helper), field);
        let net_admin = format!("{:016x}", 1u64 << 12);
        assert_eq!(
            [own("CapPrm"), own("CapBnd")],
            [net_admin.clone(), net_admin]
        );
        assert_eq!([own("NoNewPrivs"), own("Seccomp")], ["1", "2"]);
        helper.stop();
    });
}
