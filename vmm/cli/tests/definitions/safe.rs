//! Commands at the same time, commands that are killed, and hosts that refuse to write.

use std::collections::HashSet;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

use crate::host::{Host, OWN, refusal};

#[test]
fn two_commands_at_once_lose_no_change() {
    let host = Host::new();
    host.guest("g", "");
    for round in 0..100 {
        let text = format!("round {round}");
        let other: &[&str] = match round % 2 {
            0 => &["autostart", "g"],
            _ => &["autostart", "g", "--disable"],
        };
        let mut first = host.bulkhead(&["desc", "g", &text]);
        let mut first = first.stdout(Stdio::null()).spawn().unwrap();
        let mut second = host.bulkhead(other);
        let mut second = second.stdout(Stdio::null()).spawn().unwrap();
        assert!(first.wait().unwrap().success());
        assert!(second.wait().unwrap().success());

        let file = host.read("g");
        assert!(
            file.contains(&format!("description = \"{text}\"\n")),
            "{file}"
        );
        assert!(
            file.contains(&format!("autostart = {}\n", round % 2 == 0)),
            "{file}"
        );
        assert!(file.starts_with("# ours\n"), "{file}");
    }
}

#[test]
fn guests_defined_at_once_share_nothing() {
    const GUESTS: usize = 20;
    let host = Host::new();
    let commands: Vec<_> = (0..GUESTS)
        .map(|index| {
            let file = host.folder().join(format!("{index}.toml"));
            let net = "[[nets]]\nnetwork = 'a'\n".repeat(3);
            std::fs::write(&file, format!("name = 'g{index}'\nkernel = '/k'\n{net}")).unwrap();
            let mut command = host.bulkhead(&["define", file.to_str().unwrap()]);
            command.stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut command in commands {
        assert!(command.wait().unwrap().success());
    }
    let mut seen = HashSet::new();
    for index in 0..GUESTS {
        let file = host.read(&format!("g{index}"));
        for line in file
            .lines()
            .filter(|line| line.starts_with("uuid") || line.starts_with("mac"))
        {
            assert!(seen.insert(line.to_owned()), "{line}");
        }
    }
    assert_eq!(seen.len(), GUESTS * 4);
}

#[test]
fn of_two_that_define_the_same_guest_one_is_refused_or_both_agree() {
    let host = Host::new();
    for round in 0..20 {
        let given = |number: u8| {
            format!(
                "name = 'g'\nuuid = '00000000-0000-4000-8000-00000000000{number}'\nkernel = '/k'\n"
            )
        };
        let (first, second) = std::thread::scope(|scope| {
            let first = scope.spawn(|| host.define(&given(1)));
            let second = host.define(&given(2));
            (first.join().unwrap(), second)
        });
        let refused = match (first.status.success(), second.status.success()) {
            (true, false) => refusal(&second),
            (false, true) => refusal(&first),
            both => panic!("{round}: {both:?}"),
        };
        assert!(
            refused.contains("domain 'g' already exists with uuid"),
            "{refused}"
        );
        host.prints(&["undefine", "g"]);
    }
}

/// The command, which is killed at its first call of this number.
fn killed_at(call: i64, command: &mut Command) {
    let filter = SeccompFilter::new(
        [(call, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::KillProcess,
        TargetArch::x86_64,
    );
    let filter = BpfProgram::try_from(filter.unwrap()).unwrap();
    // The filter is a thread's, and its children's.
    std::thread::scope(|scope| {
        let killed = scope.spawn(|| {
            apply_filter(&filter).unwrap();
            command.status().unwrap()
        });
        let status = killed.join().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{call}: {status}");
    });
}

#[test]
fn a_command_that_is_killed_leaves_the_old_file_or_the_new_one() {
    let host = Host::new();
    host.guest("g", "");
    let before = host.read("g");
    for call in [
        libc::SYS_flock,
        libc::SYS_fchmod,
        libc::SYS_fsync,
        libc::SYS_rename,
    ] {
        // It is ready to be killed once the namespace is made.
        let inner = host.folder().join("inner");
        let script = format!("exec {OWN} desc g text");
        std::fs::write(&inner, script).unwrap();
        killed_at(call, &mut host.command(["sh", inner.to_str().unwrap()]));
        assert_eq!(host.read("g"), before, "{call}");
        assert!(!host.prints(&["domuuid", "g"]).is_empty());
    }
    // What they left is in nobody's way.
    host.prints(&["desc", "g", "text"]);
    assert!(host.read("g").contains("description = \"text\"\n"));
}

#[test]
fn a_command_that_is_killed_at_any_moment_leaves_a_whole_file() {
    let host = Host::new();
    let padding = "x".repeat(100_000);
    host.guest(
        "g",
        &format!("description = \"0\"\ntitle = \"{padding}\"\n"),
    );
    let length = host.read("g").len();
    for round in 0..60_u64 {
        let text = (round % 10).to_string();
        let mut command = host.bulkhead(&["desc", "g", &text]);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Every other time while it writes, and otherwise at a moment that differs.
        let spare = host.file("g").with_file_name(".new");
        let mut looks = 0;
        while child.try_wait().unwrap().is_none() && !spare.exists() {
            looks += 1;
            if round % 2 == 1 && looks > round * 200 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let file = host.read("g");
        assert_eq!(file.len(), length, "{round}");
        assert!(file.ends_with("\"\n"), "{round}");
    }
    assert_eq!(
        host.prints(&["desc", "g", "9"]),
        "Domain description updated successfully\n\n"
    );
}

/// `script` in a mount namespace of its own, with `$1` as the command.
fn on_host(host: &Host, script: &str) -> String {
    let output = host.in_namespace(script, [OWN]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_full_disk_is_said_and_the_old_file_stays() {
    let host = Host::new();
    let padding = "x".repeat(60_000);
    let text = format!("name = 'g'\nkernel = '/k'\n[metadata]\nu = '{padding}'\n");
    std::fs::write(host.folder().join("g.toml"), text).unwrap();
    let said = on_host(
        &host,
        "set -e; mount -t tmpfs -o size=100k none /etc; $1 define g.toml; cp /etc/bulkhead/guests/g.toml before\n\
         ! $1 autostart g\n\
         cmp before /etc/bulkhead/guests/g.toml; test \"$(ls -A /etc/bulkhead/guests | sort | tr '\\n' ' ')\" = '.lock g.toml '\n\
         $1 undefine g",
    );
    assert_eq!(
        said,
        "error: Failed to mark domain 'g' as autostarted: cannot write /etc/bulkhead/guests/g.toml: \
         No space left on device (os error 28)\n"
    );
}

#[test]
fn a_read_only_etc_is_said_and_read_all_the_same() {
    let host = Host::new();
    host.guest("g", "");
    let before = host.read("g");
    let said = on_host(
        &host,
        "set -e; mount --bind \"$0/etc\" /etc; mount -o remount,bind,ro /etc\n\
         $1 dumptoml g; ! $1 autostart g; ! $1 undefine g; ! echo 'x' | $1 define -",
    );
    let lines: Vec<_> = said.lines().collect();
    for (line, begin) in lines
        .iter()
        .zip(["Failed to mark domain", "Failed to undefine domain"])
    {
        assert!(line.starts_with(&format!("error: {begin} 'g'")), "{line}");
        assert!(
            line.ends_with("cannot change the definitions in /etc/bulkhead/guests: Read-only file system (os error 30)"),
            "{line}"
        );
    }
    assert_eq!(lines.len(), 3, "{said}");
    assert_eq!(host.read("g"), before);
}

#[test]
fn one_that_holds_the_lock_for_long_is_named() {
    let host = Host::new();
    host.guest("g", "");
    let lock = std::fs::File::open(host.file("g").with_file_name(".lock")).unwrap();
    lock.lock().unwrap();
    let refused = host.refuses(&["autostart", "g"]);
    assert!(
        refused.contains("another command has been changing the definitions"),
        "{refused}"
    );
    drop(lock);
    host.prints(&["autostart", "g"]);
}
