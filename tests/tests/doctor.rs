//! `bulkhead doctor` on hosts that lack something: the line that says so, and the command that mends it, which is run.
//!
//! Each host is this one in namespaces of its own, with things taken away.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed
#![allow(
    clippy::disallowed_macros,
    reason = "tests, benches and the demo print what they find"
)]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use bulkhead_tests::guest::kvm_is_usable;
use bulkhead_tests::probe::Verdict;
use bulkhead_tests::workplace::Workplace;
use serde_json::Value;

/// What a host lacks, and what is found there.
#[derive(Clone, Copy)]
struct Case {
    /// The shell's commands that take it away.
    take: &'static str,
    check: &'static str,
    status: &'static str,
    /// How the line with the command begins.
    mend: &'static str,
    /// The status once the command has been run; nothing if it cannot be run here.
    mended: Option<&'static str>,
}

/// A /dev without /dev/kvm and /dev/net/tun.
const BARE_DEV: &str =
    "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/zero c 1 5
    mknod -m 666 /dev/urandom c 1 9";

/// The same with both.
const OWN_DEV: &str =
    "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 600 /dev/kvm c 10 232
    mkdir /dev/net && mknod -m 666 /dev/net/tun c 10 200";

const NO_TOOLS: &str = "mount -t tmpfs none /usr/sbin; PATH=$programs:/usr/bin:/bin";

const ROOT: &[Case] = &[
    Case {
        take: BARE_DEV,
        check: "/dev/kvm",
        status: "fail",
        mend: "run: mknod -m 0660 /dev/kvm c 10 232",
        mended: Some("ok"),
    },
    Case {
        take: BARE_DEV,
        check: "guests run",
        status: "fail",
        mend: "do: see /dev/kvm",
        mended: None,
    },
    Case {
        take: "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && touch /dev/kvm",
        check: "/dev/kvm",
        status: "fail",
        mend: "run: rm /dev/kvm && mknod",
        mended: Some("ok"),
    },
    Case {
        take: BARE_DEV,
        check: "/dev/net/tun",
        status: "fail",
        mend: "run: mkdir -p /dev/net && mknod",
        mended: Some("ok"),
    },
    Case {
        take: "mount -t tmpfs none /sys",
        check: "modules",
        status: "warn",
        mend: "run: mount -t sysfs sysfs /sys",
        mended: Some("ok"),
    },
    Case {
        take: "mount -t tmpfs none /sys",
        check: "clock source",
        status: "warn",
        mend: "run: mount -t sysfs sysfs /sys",
        mended: Some("ok"),
    },
    Case {
        take: "mount -t tmpfs none /proc",
        check: "TSC",
        status: "warn",
        mend: "run: mount -t proc proc /proc",
        mended: Some("ok"),
    },
    Case {
        take: "mount -o bind,ro /proc/sys /proc/sys",
        check: "IPv4 forwarding",
        status: "fail",
        mend: "do: start the container with --sysctl net.ipv4.ip_forward=1",
        mended: None,
    },
    Case {
        take: "sysctl -q net.ipv4.ip_forward=1",
        check: "IPv4 forwarding",
        status: "ok",
        mend: "",
        mended: None,
    },
    Case {
        take: "mount -t tmpfs none /sys/fs/cgroup",
        check: "cgroup v2",
        status: "warn",
        mend: "run: mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        mended: None,
    },
    Case {
        take: "ulimit -S -n 30",
        check: "open files (nofile)",
        status: "fail",
        mend: "run: ulimit -S -n 1024",
        mended: Some("ok"),
    },
    Case {
        take: "ulimit -n 512",
        check: "open files (nofile)",
        status: "warn",
        mend: "run: prlimit --pid $$ --nofile=1024:1024",
        // It takes CAP_SYS_RESOURCE, which containers lack.
        mended: None,
    },
    Case {
        take: "ulimit -S -f 100000",
        check: "file size (fsize)",
        status: "fail",
        mend: "run: ulimit -S -f unlimited",
        mended: Some("ok"),
    },
    Case {
        take: "mount -t tmpfs -o mode=755 none /run; mkdir /run/bulkhead; chmod 777 /run/bulkhead",
        check: "folder for sockets",
        status: "fail",
        mend: "run: chmod o-w /run/bulkhead",
        mended: Some("ok"),
    },
    Case {
        take: "mount -t tmpfs -o ro none /run",
        check: "folder for sockets",
        status: "fail",
        mend: "run: mount -t tmpfs",
        mended: Some("ok"),
    },
    Case {
        take: NO_TOOLS,
        check: "dnsmasq",
        status: "fail",
        mend: "run: apt-get install -y dnsmasq-base",
        mended: None,
    },
    Case {
        take: NO_TOOLS,
        check: "nftables",
        status: "ok",
        mend: "",
        mended: None,
    },
];

/// Rules of others. The last word names the chain that accepts.
const FILTERS: &[Case] = &[
    Case {
        take: "",
        check: "others' filters",
        status: "ok",
        mend: "",
        mended: None,
    },
    Case {
        take: "nft add table ip filter
            nft add chain ip filter FORWARD '{ type filter hook forward priority filter; policy drop; }'",
        check: "others' filters",
        status: "fail",
        mend: "run: nft insert rule ip filter FORWARD iifname bulkhead0 accept && nft insert rule ip filter FORWARD oifname",
        mended: Some("ok"),
    },
    Case {
        take: "nft add table inet site
            nft add chain inet site forward '{ type filter hook forward priority 10; }'
            nft add rule inet site forward ct state established,related accept
            nft add rule inet site forward iifname eth0 accept
            nft add rule inet site forward counter reject with icmpx admin-prohibited",
        check: "others' filters",
        status: "fail",
        mend: "run: nft insert rule inet site forward iifname bulkhead0 accept",
        mended: Some("ok"),
    },
    Case {
        take: "nft add table inet site
            nft add chain inet site forward '{ type filter hook forward priority 10; policy drop; }'
            nft add rule inet site forward ct state established,related accept
            nft add rule inet site forward iifname 'bulkhead*' counter accept",
        check: "others' filters",
        status: "ok",
        mend: "",
        mended: None,
    },
    Case {
        take: "nft add table ip filter
            nft add chain ip filter DOCKER-USER
            nft add chain ip filter FORWARD '{ type filter hook forward priority filter; policy drop; }'
            nft add rule ip filter FORWARD counter jump DOCKER-USER
            nft add rule ip filter FORWARD oifname docker0 ct state established accept",
        check: "others' filters",
        status: "fail",
        mend: "run: nft insert rule ip filter DOCKER-USER iifname bulkhead0 accept",
        mended: Some("ok"),
    },
    Case {
        take: "nft add table inet site
            nft add chain inet site forward '{ type filter hook forward priority 10; policy drop; }'
            nft add rule inet site forward iifname '{ eth0, bulkhead0 }' accept
            nft add rule inet site forward ct state established accept",
        check: "others' filters",
        status: "warn",
        mend: "run: nft insert rule inet site forward",
        mended: Some("ok"),
    },
    Case {
        take: "nft add table inet firewalld
            nft add chain inet firewalld filter_FORWARD '{ type filter hook forward priority 10; policy accept; }'
            nft add rule inet firewalld filter_FORWARD reject",
        check: "others' filters",
        status: "fail",
        mend: "run: firewall-cmd --permanent --zone=trusted --add-interface=bulkhead0",
        mended: None,
    },
];

/// An ordinary user's hosts: what root does to them, and what the user sees.
const USER: &[Case] = &[
    Case {
        take: "unset XDG_RUNTIME_DIR",
        check: "folder for sockets",
        status: "fail",
        mend: "run: export XDG_RUNTIME_DIR=/run/user/65534",
        mended: Some("ok"),
    },
    Case {
        take: "XDG_RUNTIME_DIR=/run/user/65534/none",
        check: "folder for sockets",
        status: "fail",
        mend: "run as root: install -d -m 0700 -o nobody /run/user/65534/none",
        mended: Some("ok"),
    },
    Case {
        take: OWN_DEV,
        check: "/dev/kvm",
        status: "fail",
        mend: "run as root: groupadd -rf kvm && chgrp kvm /dev/kvm",
        mended: Some("ok"),
    },
    Case {
        take: OWN_DEV,
        check: "guests run",
        status: "fail",
        mend: "do: see /dev/kvm",
        mended: None,
    },
    Case {
        take: OWN_DEV,
        check: "/dev/net/tun",
        status: "ok",
        mend: "",
        mended: None,
    },
    Case {
        take: "groupadd -rf kvm && mount -t tmpfs none /dev && mknod -m 660 /dev/kvm c 10 232 && chgrp kvm /dev/kvm
            mknod -m 666 /dev/null c 1 3",
        check: "/dev/kvm",
        status: "fail",
        mend: "run as root: usermod -aG kvm nobody",
        mended: Some("ok"),
    },
    Case {
        take: "",
        check: "nftables",
        status: "warn",
        mend: "run as root: bulkhead doctor",
        mended: None,
    },
    Case {
        take: "",
        check: "network helper",
        status: "warn",
        mend: "run as root: bulkhead-net-helper --network default --group bulkhead",
        mended: None,
    },
];

/// A folder with the programs that every user may run.
fn programs() -> tempfile::TempDir {
    let workplace = Workplace::find().unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    for name in [
        "bulkhead",
        "bulkhead-vmm",
        "bulkhead-block",
        "bulkhead-net",
        "bulkhead-net-helper",
    ] {
        let program = workplace.program(name).unwrap();
        std::fs::copy(program, folder.path().join(name)).unwrap();
    }
    folder
}

/// Whether this test can have hosts of its own; says so if not.
fn may_take(test: &str) -> bool {
    let probe = Command::new("unshare").args(["-m", "-n", "true"]).status();
    let may = probe.is_ok_and(|status| status.success());
    if !may {
        eprintln!("skipped: {test}: no namespaces (are you root?)");
    }
    may
}

/// Runs a script as root of a host of its own.
fn on_host(programs: &Path, script: &str) -> Output {
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--net",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
        ])
        .env("programs", programs)
        .env(
            "PATH",
            format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display()),
        )
        .env_remove("XDG_RUNTIME_DIR")
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}\n{output:?}");
    output
}

/// The report before the command was run, and the one after it.
struct Reports {
    before: String,
    after: String,
}

/// Takes things away, runs the doctor as `doctor` says, runs what it says mends, and runs it again.
fn reports(programs: &Path, case: &Case, begin: &str, doctor: &str) -> Reports {
    let mend = match case.mended {
        Some(_) => r#"eval "$(mend before)""#,
        None => "",
    };
    let (take, check) = (case.take, case.check.replace('\'', r"'\''"));
    let script = format!(
        r#"set -e
{begin}
reports=$(mktemp -d)
mend() {{ grep -F -A1 ': {check} ' $reports/$1 | sed -n 's/^ *run[a-z ]*: //p'; }}
{take}
{doctor} >$reports/before || [ $? = 1 ]
{mend}
{doctor} >$reports/after || [ $? = 1 ]
cat $reports/before; echo =; cat $reports/after
rm -r $reports"#,
    );
    let output = on_host(programs, &script);
    let text = String::from_utf8(output.stdout).unwrap();
    let (before, after) = text.split_once("\n=\n").unwrap_or_else(|| panic!("{text}"));
    Reports {
        before: before.to_owned(),
        after: after.to_owned(),
    }
}

/// The word of a check's line, and the line below it.
fn line<'a>(report: &'a str, check: &str) -> (String, &'a str) {
    let mut lines = report.lines();
    let is_found = |line: &&str| {
        line.split_once(": ").is_some_and(|(_, rest)| {
            rest.split_once(" : ")
                .is_some_and(|(name, _)| name.trim_end() == check)
        })
    };
    let found = lines
        .find(is_found)
        .unwrap_or_else(|| panic!("no {check} in\n{report}"));
    let (_, rest) = found.rsplit_once(" : ").unwrap_or(("", ""));
    let word = found.split(" : ").nth(1).unwrap_or(rest);
    let word = word.split(' ').next().unwrap().to_lowercase();
    let below = lines
        .next()
        .filter(|line| line.starts_with("      "))
        .unwrap_or("");
    let below = below.trim_start();
    (
        word,
        if ["run", "do: "].iter().any(|begin| below.starts_with(begin)) {
            below
        } else {
            ""
        },
    )
}

fn check_all(cases: &[Case], begin: &str, doctor: &str) {
    let programs = programs();
    for case in cases {
        let Case {
            check,
            status,
            mend,
            mended,
            take,
        } = *case;
        let Reports { before, after } = reports(programs.path(), case, begin, doctor);
        let (found, below) = line(&before, check);
        assert_eq!(found, status, "{check} without\n{take}\n{before}");
        assert!(below.starts_with(mend), "{check} without\n{take}\n{before}");
        assert_eq!(
            below.is_empty(),
            mend.is_empty(),
            "{check} without\n{take}\n{before}"
        );
        if let Some(mended) = mended {
            let (found, _) = line(&after, check);
            assert_eq!(found, mended, "{check} mended after\n{take}\n{after}");
        }
    }
}

#[test]
fn each_thing_that_a_host_lacks_has_its_line_and_its_command_mends_it() {
    if may_take("each_thing_that_a_host_lacks_has_its_line_and_its_command_mends_it") {
        check_all(ROOT, "", "timeout 60 bulkhead doctor");
    }
}

#[test]
fn others_rules_that_drop_what_guests_send_are_named_and_a_rule_lets_it_pass() {
    if may_take("others_rules_that_drop_what_guests_send_are_named_and_a_rule_lets_it_pass") {
        check_all(FILTERS, "", "timeout 60 bulkhead doctor");
    }
}

#[test]
fn an_ordinary_user_learns_what_root_has_to_do() {
    if !may_take("an_ordinary_user_learns_what_root_has_to_do") {
        return;
    }
    // Users and groups of its own, so that commands can change them; and a login session.
    let begin = "cp -a /etc $programs/etc-$$ && mount --bind $programs/etc-$$ /etc
        mount -t tmpfs -o mode=755 none /run && install -d -m 700 -o nobody /run/user/65534
        export XDG_RUNTIME_DIR=/run/user/65534";
    let doctor = "timeout 60 setpriv --reuid nobody --regid nogroup --init-groups bulkhead doctor";
    check_all(USER, begin, doctor);
}

#[test]
fn a_user_without_user_namespaces_learns_the_setting() {
    const TEST: &str = "a_user_without_user_namespaces_learns_the_setting";
    let probe = Command::new("unshare").args(["-U", "true"]).status();
    if !may_take(TEST) || !probe.is_ok_and(|status| status.success()) {
        eprintln!("skipped: {TEST}: no user namespace");
        return;
    }
    let programs = programs();
    // The setting is a user namespace's: that of the host stays.
    let script = r#"set -e
        cd $programs && mkfifo -m 666 made go && chmod 777 .
        unshare -U sh -c 'echo >made; read line <go' &
        holder=$!
        read line <made
        echo 0 0 65536 >/proc/$holder/uid_map
        echo 0 0 65536 >/proc/$holder/gid_map
        nsenter -U -t $holder sh -ec '
            doctor() { setpriv --reuid nobody --regid nogroup --clear-groups bulkhead doctor || [ $? = 1 ]; }
            echo 0 >/proc/sys/user/max_user_namespaces
            doctor
            echo =
            sysctl -q user.max_user_namespaces=15000
            doctor'
        echo >go
        wait"#;
    let output = on_host(programs.path(), script);
    let text = String::from_utf8(output.stdout).unwrap();
    let (before, after) = text.split_once("\n=\n").unwrap();
    let (status, below) = line(before, "user namespaces");
    let command = "run as root: sysctl user.max_user_namespaces=15000";
    assert_eq!((&*status, below), ("warn", command), "{before}");
    assert_eq!(line(after, "user namespaces").0, "ok", "{after}");
}

#[test]
fn a_monitor_that_does_not_answer_is_a_failure_and_nothing_hangs() {
    if !may_take("a_monitor_that_does_not_answer_is_a_failure_and_nothing_hangs") {
        return;
    }
    let programs = programs();
    let monitor = programs.path().join("bulkhead-vmm");
    std::fs::write(&monitor, "#!/bin/sh\nsleep infinity").unwrap();
    let output = on_host(programs.path(), "timeout 60 bulkhead doctor || [ $? = 1 ]");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(line(&text, "guests run").0, "fail", "{text}");
}

#[test]
fn what_runs_here_is_found_by_running_it() {
    const TEST: &str = "what_runs_here_is_found_by_running_it";
    if !may_take(TEST) || !kvm_is_usable(TEST) {
        return;
    }
    let programs = programs();
    let output = on_host(programs.path(), "bulkhead doctor || [ $? = 1 ]");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(line(&text, "guests run").0, "ok", "{text}");
    let linux = match bulkhead_tests::probe::probe() {
        Verdict::RunsLinux => "ok",
        _ => "fail",
    };
    assert_eq!(line(&text, "Linux guests run").0, linux, "{text}");
}

#[test]
fn json_has_the_same_findings_and_the_status_says_whether_one_is_a_failure() {
    if !may_take("json_has_the_same_findings_and_the_status_says_whether_one_is_a_failure") {
        return;
    }
    let programs = programs();
    let script = "set +e; for form in text json; do bulkhead doctor -o $form; echo \"=$?\"; done";
    let output = on_host(programs.path(), script);
    let text = String::from_utf8(output.stdout).unwrap();
    let parts: Vec<_> = text.split('=').collect();
    // TEXT =STATUS\nJSON =STATUS\n, of which the text has no other such sign where nothing is to be mended by one.
    let json = &text[text.find("\n[\n").unwrap()..text.rfind('=').unwrap()];
    let findings: Vec<Value> = serde_json::from_str(json).unwrap();
    let mut failed = false;
    for finding in &findings {
        let word = |name: &str| finding[name].as_str().unwrap().to_owned();
        assert_eq!(line(&text, &word("check")).0, word("status"));
        failed |= word("status") == "fail";
    }
    assert!(findings.len() > 20, "{json}");
    let status = parts.last().unwrap().trim();
    assert_eq!(status, if failed { "1" } else { "0" });
    // Colours are for terminals.
    assert!(!text.contains('\x1b'));
}
