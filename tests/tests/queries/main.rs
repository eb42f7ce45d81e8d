//! The verbs that look at guests: what they print of real ones is what the kernel says of their processes and devices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

#[allow(dead_code, reason = "these tests need a part of it")]
#[path = "../background/host.rs"]
mod host;

use std::fs;
use std::net::UdpSocket;
use std::process::Command;

use bulkhead_tests::guest::{Program, in_own_host, kernel, kvm_is_usable};
use serde_json::Value;

use host::{Host, eventually};

fn on_host(test: &str, body: impl FnOnce(&Host)) {
    if !kvm_is_usable(test) {
        return;
    }
    in_own_host(test, || {
        let host = Host::new();
        // The interfaces in the one that was mounted before are another host's.
        let mounted = Command::new("mount")
            .args(["-t", "sysfs", "none", "/sys"])
            .status();
        assert!(mounted.unwrap().success(), "mount /sys");
        body(&host);
        host.nothing_left();
    });
}

const MAC: &str = "52:54:00:00:00:07";

/// A guest with two CPUs, a disk and a card.
fn define(host: &Host, test: &str) {
    let disk = fs::File::create("/run/disk.raw").unwrap();
    disk.set_len(16 << 20).unwrap();
    let more = format!(
        "cpus = 2\n[[disks]]\npath = \"/run/disk.raw\"\nformat = \"raw\"\n[[nets]]\nnetwork = \"default\"\nmac = \"{MAC}\""
    );
    host.define("g", test, &more);
}

fn json(host: &Host, words: &[&str]) -> Value {
    let words = [words, &["-o", "json"]].concat();
    serde_json::from_str(&host.ok(&words)).unwrap()
}

#[test]
fn what_a_guest_has_is_listed_whether_it_runs_or_not() {
    on_host(
        "what_a_guest_has_is_listed_whether_it_runs_or_not",
        |host| {
            define(host, "echo");
            let disks = " Target   Source\n-------------------------\n vda      /run/disk.raw\n\n";
            assert_eq!(host.ok(&["domblklist", "g"]), disks);
            let off = format!(" -           network   default   virtio   {MAC}\n");
            assert_eq!(host.ok(&["-q", "domiflist", "g"]), off);
            assert_eq!(
                host.ok(&["vcpucount", "g"]),
                "maximum      config         2\ncurrent      config         2\n\n"
            );
            assert!(
                host.ok(&["vcpuinfo", "g"])
                    .contains("State:          N/A\n")
            );
            for verb in ["cpu-stats", "domifaddr", "dommemstat"] {
                assert!(host.refused(&[verb, "g"]).contains("domain is not running"));
            }

            host.ok(&["start", "g"]);

            assert_eq!(host.ok(&["domblklist", "g"]), disks);
            let details = json(host, &["domblklist", "g"]);
            assert_eq!(details[0]["type"], "file");
            let cards = json(host, &["domiflist", "g"]);
            let tap = cards[0]["interface"].as_str().unwrap();
            assert!(fs::exists(format!("/sys/class/net/{tap}/tun_flags")).unwrap());
            assert_eq!(host.ok(&["-q", "vcpucount", "g", "--live"]), "2\n");
            // The helper answers, and knows no lease of a guest that has not asked for one.
            assert_eq!(json(host, &["domifaddr", "g"]), serde_json::json!([]));
            assert!(
                host.refused(&["domifaddr", "g", "--source", "agent"])
                    .contains("use --source lease")
            );
            assert!(
                host.refused(&["domdisplay", "g"])
                    .contains("No graphical display found")
            );
            assert!(
                host.refused(&["qemu-monitor-command", "g", "--hmp", "info status"])
                    .contains("'bulkhead domstate --reason g'")
            );
            host.ok(&["destroy", "g"]);
        },
    );
}

/// The host's CPUs that a thread of a process may use.
fn allowed(process: i32, thread: &str) -> String {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let status = threads
        .map(|it| fs::read_to_string(it.unwrap().path().join("status")).unwrap())
        .find(|status| status.starts_with(&format!("Name:\t{thread}\n")))
        .unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"));
    line.unwrap().to_owned()
}

#[test]
fn a_virtual_cpu_is_pinned_and_the_others_are_not() {
    on_host("a_virtual_cpu_is_pinned_and_the_others_are_not", |host| {
        host.define("g", "echo", "cpus = 2");
        host.ok(&["start", "g"]);
        let monitor = host.process("g", "vmm").unwrap().as_raw_nonzero().get();
        let all = allowed(monitor, "vcpu0");

        assert_eq!(host.ok(&["vcpupin", "g", "1", "0"]), "\n");

        assert_eq!(allowed(monitor, "vcpu1"), "0");
        assert_eq!(allowed(monitor, "vcpu0"), all);
        assert_eq!(
            host.ok(&["-q", "vcpupin", "g"]),
            format!(" 0      {all}\n 1      0\n")
        );
        let infos = json(host, &["vcpuinfo", "g"]);
        assert_eq!(infos[1]["affinity"], serde_json::json!([0]));
        assert_eq!(infos.as_array().unwrap().len(), 2);
        for (words, why) in [
            (
                &["7", "0"][..],
                "vcpu 7 is out of range of live cpu count 2",
            ),
            (&["0", "4096"], "does not exist"),
            (&["0", "0", "--config"], "a definition keeps no affinity"),
            (&["7"], "requested vcpu '7' is not present in the domain"),
        ] {
            let said = host.refused(&[&["vcpupin", "g"], words].concat());
            assert!(said.contains(why), "{said}");
        }
        host.ok(&["destroy", "g"]);
    });
}

#[test]
fn figures_are_those_of_the_kernel() {
    on_host("figures_are_those_of_the_kernel", |host| {
        let server = UdpSocket::bind("0.0.0.0:7").unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = server.recv_from(&mut buffer) {
                let datagram = &mut buffer[..length];
                datagram.iter_mut().for_each(|byte| *byte = !*byte);
                let _ = server.send_to(datagram, from);
            }
        });
        let words = "net n=1000000000 ip=192.168.124.2 peer=192.168.124.1 progress=0";
        define(host, words);
        host.ok(&["start", "g"]);
        let tap = json(host, &["domiflist", "g"])[0]["interface"].clone();
        let tap = tap.as_str().unwrap();
        let of_host = |name: &str| -> u64 {
            let path = format!("/sys/class/net/{tap}/statistics/{name}");
            fs::read_to_string(path).unwrap().trim().parse().unwrap()
        };
        eventually("the guest has traffic", || of_host("rx_packets") > 500);

        let before = (of_host("rx_packets"), of_host("tx_bytes"));
        let of_guest = json(host, &["domifstat", "g", MAC]);
        let after = (of_host("rx_packets"), of_host("tx_bytes"));

        // What the host receives, the guest has sent.
        let sent = of_guest["tx_packets"].as_u64().unwrap();
        assert!(
            (before.0..=after.0).contains(&sent),
            "{before:?} {of_guest} {after:?}"
        );
        let received = of_guest["rx_bytes"].as_u64().unwrap();
        assert!(
            (before.1..=after.1).contains(&received),
            "{before:?} {of_guest} {after:?}"
        );
        let text = host.ok(&["domifstat", "g", tap]);
        assert!(text.starts_with(&format!("{tap} rx_bytes ")), "{text}");
        assert!(
            host.refused(&["domifstat", "g", "lo"])
                .contains("is not a known interface")
        );

        let stats = json(host, &["domstats", "g"]);
        let figure = |name: &str| stats[0]["stats"][name].as_u64().unwrap();
        assert_eq!((figure("state.state"), figure("state.reason")), (1, 1));
        assert_eq!(
            figure("cpu.time"),
            figure("cpu.user") + figure("cpu.system")
        );
        assert!(figure("cpu.time") > 0 && figure("vcpu.0.time") > 0);
        assert!(figure("net.0.tx.pkts") >= sent);
        assert_eq!(figure("block.0.physical"), 16 << 20);
        let memory = json(host, &["dommemstat", "g"]);
        assert_eq!(memory["actual"], 64 << 10);
        assert!(memory["rss"].as_u64().unwrap() > 0);
        let total = json(host, &["cpu-stats", "g"]);
        assert!(total["cpu_time"].as_u64().unwrap() >= figure("cpu.time"));
        let state = host.ok(&["domstats", "--state", "--list-active"]);
        assert_eq!(state, "Domain: 'g'\n  state.state=1\n  state.reason=1\n\n");
        host.ok(&["destroy", "g"]);
    });
}

#[test]
fn a_guest_is_created_from_a_file_and_leaves_no_definition() {
    on_host(
        "a_guest_is_created_from_a_file_and_leaves_no_definition",
        |host| {
            let kernel = kernel().display();
            let text = format!(
                "name = \"t\"\nmemory = \"64M\"\nkernel = \"{kernel}\"\ncmdline = \"test=echo\"\n"
            );
            fs::write("/run/t.toml", text).unwrap();
            assert_eq!(
                host.ok(&["create", "/run/t.toml", "--paused"]),
                "Domain 't' created from /run/t.toml\n\n"
            );
            assert_eq!(host.ok(&["-q", "domstate", "t"]), "paused\n");
            assert_eq!(
                host.ok(&["-q", "list", "--name", "--transient"]).trim(),
                "t"
            );
            let again = host.refused(&["create", "/run/t.toml"]);
            assert!(again.contains("domain 't' is already active"), "{again}");
            host.ok(&["destroy", "t"]);
            assert_eq!(host.ok(&["-q", "list", "--all", "--name"]).trim(), "");
            fs::write("/run/t.toml", "name = \"t\"\nkernal = \"/k\"\n").unwrap();
            let wrong = host.refused(&["create", "/run/t.toml"]);
            assert!(wrong.contains("kernal"), "{wrong}");
        },
    );
}

fn has_thread(process: u32, name: &str) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task"));
    let names = threads.into_iter().flatten().flatten();
    let mut names = names.filter_map(|it| fs::read_to_string(it.path().join("comm")).ok());
    names.any(|found| found.trim_end() == name)
}

#[test]
fn events_of_guests_that_come_and_go_are_printed() {
    on_host("events_of_guests_that_come_and_go_are_printed", |host| {
        host.define("old", "echo", "");
        host.define("new", "echo", "");
        host.ok(&["start", "old"]);
        let mut events = Program::start(host.command(&["event", "--all", "--loop"]));
        let process = events.id();
        let mut next = |expected: &str| assert_eq!(events.next_line().unwrap(), expected);
        // This thread is started when all that run are watched.
        eventually("it watches", || has_thread(process, "inotify"));
        host.ok(&["start", "new"]);
        next("event 'lifecycle' for domain 'new': Started Booted");
        host.ok(&["suspend", "old"]);
        next("event 'lifecycle' for domain 'old': Suspended Paused");
        host.ok(&["resume", "old"]);
        next("event 'lifecycle' for domain 'old': Resumed Unpaused");
        host.ok(&["destroy", "new"]);
        next("event 'lifecycle' for domain 'new': Stopped Destroyed");
        // The watched supervisor is killed: its successor is watched.
        host.kill(host.supervisor("old"));
        eventually("another supervises", || host.running() == ["old"]);
        host.ok(&["destroy", "old"]);
        next("event 'lifecycle' for domain 'old': Stopped Destroyed");
        drop(events);

        let none = host.output(&["event", "--event", "lifecycle", "--timeout", "1"]);
        assert_eq!(none.status.code(), Some(1));
        assert_eq!(none.stdout, b"event loop timed out\nevents received: 0\n\n");
        assert_eq!(host.ok(&["-q", "event", "--list"]), "lifecycle\nreboot\n");
    });
}
