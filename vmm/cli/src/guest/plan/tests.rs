//! What a plan has, for each part of a definition.

use super::*;
use crate::guest::CommandLine;
use clap::Parser;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    guest: CommandLine,
}

fn guest(words: &[&str]) -> Definition {
    let line = ["run", "--name", "g", "--kernel", "/k"].iter().chain(words);
    Line::parse_from(line).guest.into()
}

fn programs() -> Programs {
    Programs {
        vmm: Program::named("bulkhead-vmm"),
        block: Program::named("bulkhead-block"),
        net: Program::named("bulkhead-net"),
        net_helper: Program::named("bulkhead-net-helper"),
    }
}

fn site<'a>(programs: &'a Programs, base: &'a str) -> Site<'a> {
    Site {
        programs,
        base: Path::new(base),
        helper_socket: None,
        may_start_helper: true,
        console: Console::Terminal,
        sockets: Sockets::Backends,
    }
}

fn plan(words: &[&str]) -> Plan {
    Plan::new(&guest(words), &site(&programs(), "/run/b")).unwrap()
}

fn commands(plan: &Plan) -> Vec<String> {
    let helper = plan.helper.iter().flat_map(|helper| &helper.start);
    let processes = helper.chain(&plan.processes);
    processes
        .map(|process| process.command().into_string().unwrap())
        .collect()
}

#[test]
fn a_guest_is_its_helper_its_backends_and_its_monitor() {
    let plan = plan(&[
        "--disk",
        "/d.raw",
        "--net",
        "default,mac=52:54:00:00:00:01",
        "--cpus",
        "2",
        "--initramfs",
        "/i",
    ]);
    assert_eq!(
        commands(&plan),
        [
            "bulkhead-net-helper --socket-path /run/b/net-helper.sock --network default --exit-idle",
            "bulkhead-net --socket-path /run/b/g/net0.sock --network default --helper-socket /run/b/net-helper.sock --mac 52:54:00:00:00:01",
            "bulkhead-block --socket-path /run/b/g/vda.sock --blk-file /d.raw --format raw",
            "bulkhead-vmm --kernel /k --initramfs /i --cmdline console=ttyS0 --cpus boot=2 --memory size=512M \
             --disk vhost_user=on,socket=/run/b/g/vda.sock \
             --net vhost_user=on,socket=/run/b/g/net0.sock,mac=52:54:00:00:00:01 --serial tty \
             --api-socket path=/run/b/g/api.sock",
        ]
    );
    let needs: Vec<_> = plan
        .processes
        .iter()
        .map(|process| process.needs_helper)
        .collect();
    assert_eq!(needs, [true, false, false]);
}

#[test]
fn a_helper_is_started_only_by_those_who_may_and_where_none_is_named() {
    let (guest, programs) = (guest(&["--net", "default"]), programs());
    let site = site(&programs, "/run/b");
    let plan = |site: &Site<'_>| Plan::new(&guest, site).unwrap().helper.unwrap();
    assert!(plan(&site).start.is_some());
    let user = Site {
        may_start_helper: false,
        ..site.clone()
    };
    assert!(plan(&user).start.is_none());
    let named = Site {
        helper_socket: Some(Path::new("/h")),
        ..site
    };
    let helper = plan(&named);
    assert!(helper.start.is_none());
    assert_eq!(helper.socket, Path::new("/h"));
}

#[test]
fn a_helper_is_started_for_the_default_network_only() {
    for nets in [&["defualt"][..], &["default", "lan"]] {
        let words: Vec<_> = nets.iter().flat_map(|net| ["--net", net]).collect();
        let helper = plan(&words).helper.unwrap();
        assert!(helper.start.is_none(), "{nets:?}");
        assert_eq!(helper.networks, nets);
    }
}

#[test]
fn the_monitor_comes_after_every_backend() {
    let plan = plan(&["--disk", "/a.qcow2", "--disk", "/b.raw"]);
    let monitor = plan.processes.last().unwrap();
    assert_eq!(monitor.role, Role::Monitor);
    assert_eq!(monitor.after, [0, 1]);
}

#[test]
fn a_command_names_the_file_and_its_format() {
    let plan = plan(&["--disk", "/a b.qcow2,readonly=on,allow-path=/base"]);
    let command = plan.processes[0].command().into_string().unwrap();
    assert!(
        command.ends_with(
            "bulkhead-block --socket-path /run/b/g/vda.sock --blk-file '/a b.qcow2' --format qcow2 --read-only --allow-path /base"
        ),
        "{command}"
    );
}

#[test]
fn a_runtime_folder_with_a_comma_is_one_value() {
    let (guest, programs) = (guest(&[]), programs());
    let plan = |base: &str| Plan::new(&guest, &site(&programs, base));
    let commas = plan("/run/a,b").unwrap();
    let last = commas.processes[0].args.last().unwrap();
    assert_eq!(last, "path=\"/run/a,b/g/api.sock\"");
    assert!(plan("/run/a\"b").is_err());
}

/// The words after `option` in the command of a process.
fn word_after(process: &Process, option: &str) -> Vec<String> {
    let words = process.args.windows(2).filter(|pair| pair[0] == option);
    let word = |pair: &[OsString]| pair[1].clone().into_string().unwrap();
    words.map(word).collect()
}

fn plan_of(change: impl FnOnce(&mut Definition)) -> anyhow::Result<Plan> {
    let mut guest = guest(&["--disk", "/d.raw", "--net", "default"]);
    change(&mut guest);
    Plan::new(&guest, &site(&programs(), "/run/b"))
}

#[test]
fn both_ends_of_a_device_have_its_queues() {
    let plan = plan_of(|guest| {
        guest.disks[0].queues = 4;
        guest.disks[0].serial = Some("s 1".into());
        guest.nets[0].queues = 2;
    })
    .unwrap();
    let [net, disk, monitor] = &plan.processes[..] else {
        panic!("{plan:?}");
    };
    assert_eq!(word_after(net, "--num-queues"), ["2"]);
    assert_eq!(word_after(disk, "--num-queues"), ["4"]);
    assert_eq!(word_after(disk, "--serial"), ["s 1"]);
    let disk = word_after(monitor, "--disk");
    assert_eq!(
        disk,
        ["vhost_user=on,socket=/run/b/g/vda.sock,num_queues=4"]
    );
    let net = word_after(monitor, "--net");
    assert!(net[0].ends_with(",num_queues=5"), "{net:?}");
}

#[test]
fn the_serial_port_is_where_the_definition_says() {
    for (serial, word) in [
        (Serial::Console, "tty"),
        (Serial::Off, "off"),
        (Serial::File("/log/a,b".into()), "file=/log/a,b"),
    ] {
        let plan = plan_of(|guest| guest.serial = serial).unwrap();
        let monitor = plan.processes.last().unwrap();
        assert_eq!(word_after(monitor, "--serial"), [word]);
    }
}

#[test]
fn devices_of_other_programs_are_the_monitors_alone() {
    let share = VhostUser {
        device_type: "fs".parse().unwrap(),
        socket: "/run/fs,1.sock".into(),
        tag: Some("share".into()),
        queues: Some(3),
    };
    let plain = VhostUser {
        device_type: "4".parse().unwrap(),
        socket: "/run/rng.sock".into(),
        tag: None,
        queues: None,
    };
    let quote = VhostUser {
        socket: "/run/a\"b".into(),
        ..plain.clone()
    };
    let plan = plan_of(|guest| guest.vhost_user = vec![share, plain]).unwrap();
    assert_eq!(plan.processes.len(), 3);
    assert_eq!(
        word_after(&plan.processes[2], "--vhost-user"),
        [
            "type=fs,socket=\"/run/fs,1.sock\",tag=share,num_queues=3",
            "type=4,socket=/run/rng.sock"
        ]
    );
    let error = plan_of(|guest| guest.vhost_user = vec![quote]).unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        "the 4 device: /run/a\"b has a double quote in it"
    );
}

#[test]
fn disks_come_in_the_order_of_their_names() {
    let plan = plan_of(|guest| {
        let named = |path: &str, target: Option<&str>| Disk {
            path: path.into(),
            target: target.map(Into::into),
            ..guest.disks[0].clone()
        };
        guest.disks = vec![
            named("/second", Some("vdb")),
            named("/third", None),
            named("/first", Some("vda")),
            named("/last", Some("vdaa")),
        ];
    })
    .unwrap();
    let files = plan.processes[1..5]
        .iter()
        .map(|disk| (disk.name.clone(), word_after(disk, "--blk-file").remove(0)));
    let expected = [
        ("vda", "/first"),
        ("vdb", "/second"),
        ("vdc", "/third"),
        ("vdaa", "/last"),
    ];
    assert!(files.eq(expected.map(|(name, file)| (name.into(), file.into()))));
    let sockets = word_after(&plan.processes[5], "--disk");
    assert!(sockets[3].ends_with("/vdaa.sock"), "{sockets:?}");
}

#[test]
fn a_service_manager_passes_the_backends_their_sockets_and_the_monitor_has_its_own_folder() {
    let guest = guest(&["--disk", "/d.raw", "--net", "default,mac=52:54:00:00:00:01"]);
    let programs = programs();
    let site = Site {
        sockets: Sockets::ServiceManager,
        console: Console::Socket,
        helper_socket: Some(Path::new("/h.sock")),
        ..site(&programs, "/run/b")
    };
    let plan = Plan::new(&guest, &site).unwrap();
    assert_eq!(
        commands(&plan),
        [
            "bulkhead-net --fd 3 --network default --helper-socket /h.sock --mac 52:54:00:00:00:01",
            "bulkhead-block --fd 3 --blk-file /d.raw --format raw",
            "bulkhead-vmm --kernel /k --cmdline console=ttyS0 --cpus boot=1 --memory size=512M \
             --disk vhost_user=on,socket=/run/b/g/vda.sock \
             --net vhost_user=on,socket=/run/b/g/net0.sock,mac=52:54:00:00:00:01 \
             --serial socket=/run/b/g/vmm/console.sock --api-socket path=/run/b/g/vmm/api.sock",
        ]
    );
}
