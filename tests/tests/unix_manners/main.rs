//! Every program of a guest under the conditions that a Unix program meets: nohup, limits, closed descriptors, odd
//! umasks, containers, a shell's jobs. Each program is tried under each condition, in namespaces of this test's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod descriptors;
mod program;
mod terminal;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead_tests::guest::{RUN, in_own_host, kvm_is_usable, processes};
use rustix::process::Signal;

use program::{PROGRAMS, Place, eventually};

/// How a program must behave under a condition.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It serves, ends with 0 on SIGTERM, and writes nothing to standard error.
    Works,
    /// That, or one line says what is wrong, and it ends with 1.
    WorksOrSays,
}

use Outcome::{Works, WorksOrSays};

/// Where and how a program is started: words of a shell, which becomes the program.
const CONDITIONS: &[(&str, Outcome)] = &[
    (":", Works),
    ("exec <&-", Works),
    ("exec >&-", Works),
    ("exec 2>&-", Works),
    ("exec <&- >&- 2>&-", Works),
    ("exec </dev/null >/dev/full 2>/dev/full", Works),
    ("umask 0", Works),
    ("umask 0777", Works),
    ("ulimit -n 256", Works),
    ("ulimit -f 0", WorksOrSays),
    ("ulimit -f 8", WorksOrSays),
    ("ulimit -l 0", WorksOrSays),
    ("ulimit -c 0", Works),
    ("ulimit -s 256", Works),
    ("mount -t tmpfs none /proc", WorksOrSays),
    ("mount -o bind,remount,ro /run", WorksOrSays),
    ("mount -o bind,remount,noexec,nosuid,nodev /run", Works),
    (
        "mkdir /tmp/gone.$$ && cd /tmp/gone.$$ && rmdir /tmp/gone.$$",
        Works,
    ),
    ("unset HOME USER LANG XDG_RUNTIME_DIR", Works),
    ("exec 9</etc/passwd 8>/tmp/inherited.$$", Works),
    ("trap '' PIPE", Works),
    ("trap '' CHLD", Works),
    (
        "trap '' PIPE CHLD ALRM USR1 USR2 URG WINCH TSTP TTIN TTOU",
        Works,
    ),
    (CLOSED_PIPES, Works),
    ("ulimit -v 1000000", WorksOrSays),
    ("ulimit -v 100000", WorksOrSays),
    ("ulimit -v 40000", WorksOrSays),
    ("ulimit -c unlimited", Works),
    ("export TMPDIR=/nowhere HOME=/nowhere", Works),
    (
        "export RUST_BACKTRACE=1 RUST_LIB_BACKTRACE=full RUST_LOG=trace",
        Works,
    ),
    ("export NOTIFY_SOCKET=/nowhere", WorksOrSays),
    ("export NOTIFY_SOCKET=", WorksOrSays),
    ("export NOTIFY_SOCKET=x", WorksOrSays),
    ("mount -t tmpfs none /sys", WorksOrSays),
    ("mount -t tmpfs none /tmp", Works),
    ("mount -t tmpfs none /dev", WorksOrSays),
    (
        "mount --bind /run/files/disk.raw /run/files/disk.raw",
        Works,
    ),
    (
        "mount --bind /run/files /run/files && mount -o bind,remount,ro /run/files",
        WorksOrSays,
    ),
    (
        "mount --make-rprivate / && mount --bind / /mnt && cd /mnt",
        Works,
    ),
    ("chmod 000 /run/files/disk.raw", Works),
];

/// Standard output and error are pipes that nobody reads any more.
const CLOSED_PIPES: &str = "mkfifo /tmp/pipe.$$ && exec 3<>/tmp/pipe.$$ && rm /tmp/pipe.$$ && exec >/proc/self/fd/3 2>&1 3<&-";

#[test]
fn each_program_works_or_says_what_is_wrong() {
    const NAME: &str = "each_program_works_or_says_what_is_wrong";
    in_own_host(NAME, || {
        let place = Place::new();
        let mut complaints = Vec::new();
        for program in PROGRAMS {
            if program.needs_kvm && !kvm_is_usable(NAME) {
                continue;
            }
            for &(condition, outcome) in CONDITIONS {
                if let Err(complaint) = place.check(program, condition, outcome == Works) {
                    complaints.push(format!("{}, {condition}: {complaint}", program.name));
                }
            }
        }
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    });
}

#[test]
fn a_service_manager_that_reads_nothing_holds_no_program_up() {
    const NAME: &str = "a_service_manager_that_reads_nothing_holds_no_program_up";
    in_own_host(NAME, || {
        let place = Place::new();
        let _manager = manager_that_reads_nothing();
        for program in PROGRAMS {
            if program.needs_kvm && !kvm_is_usable(NAME) {
                continue;
            }
            let running = place.start(program, &format!("{NOTIFY} && exec 2>&1"));
            if program.name != "bulkhead run" {
                // `bulkhead run` notifies nobody, and is itself the service manager of what it starts.
                let said = running.next_line().unwrap_or_default();
                assert!(said.contains("NOTIFY_SOCKET"), "{}: {said}", program.name);
            }
            assert!(running.serves(), "{}", program.name);
            running.end_with(Signal::TERM, program.name);
        }
    });
}

#[test]
fn sigterm_ends_a_program_that_waits_for_its_service_manager() {
    const NAME: &str = "sigterm_ends_a_program_that_waits_for_its_service_manager";
    in_own_host(NAME, || {
        let place = Place::new();
        let _manager = manager_that_reads_nothing();
        for program in PROGRAMS.iter().chain([&program::MONITOR_WITHOUT_GUEST]) {
            if program.needs_kvm && !kvm_is_usable(NAME) {
                continue;
            }
            loop {
                let start = Instant::now();
                let running = place.start(program, NOTIFY);
                assert!(running.serves(), "{}", program.name);
                if program.name == "bulkhead-vmm" {
                    // The monitor notifies its service manager once the guest runs.
                    eventually("the guest runs", || running.has_thread("vcpu0"));
                }
                running.signal(Signal::TERM);
                let time = start.elapsed();
                let (status, said) = running.end();
                assert_eq!(status, Some(0), "{}: {said}", program.name);
                // The program had not waited for two seconds when the signal came. So it must not have waited on.
                if time < WAITS {
                    assert_eq!(said, "", "{}", program.name);
                    break;
                }
            }
        }
    });
}

/// How long a program waits for a service manager that does not read.
const WAITS: Duration = Duration::from_secs(2);

/// Names the socket of a service manager.
const NOTIFY: &str = "export NOTIFY_SOCKET=/run/files/notify.sock";

/// The socket of a service manager, with a full queue.
fn manager_that_reads_nothing() -> UnixDatagram {
    let path = "/run/files/notify.sock";
    let manager = UnixDatagram::bind(path).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_nonblocking(true).unwrap();
    while sender.send_to(b"x", path).is_ok() {}
    manager
}

#[test]
fn a_signal_that_is_ignored_stays_ignored_and_others_end_a_program() {
    const NAME: &str = "a_signal_that_is_ignored_stays_ignored_and_others_end_a_program";
    in_own_host(NAME, || {
        let place = Place::new();
        for program in PROGRAMS {
            if program.needs_kvm && !kvm_is_usable(NAME) {
                continue;
            }
            for (word, signal) in [("HUP", Signal::HUP), ("INT", Signal::INT)] {
                let running = place.start(program, &format!("trap '' {word}"));
                assert!(running.serves(), "{}", program.name);
                running.signal(signal);
                // An ignored signal has no effect to wait for, so another one follows, and the program serves on.
                running.signal(Signal::URG);
                assert!(running.still_serves(), "{} ignores SIG{word}", program.name);
                running.end_with(Signal::TERM, program.name);

                let running = place.start(program, ":");
                assert!(running.serves(), "{}", program.name);
                running.end_with(signal, program.name);
            }
            let running = place.start(program, ":");
            assert!(running.serves(), "{}", program.name);
            running.signal(Signal::STOP);
            running.signal(Signal::CONT);
            assert!(running.still_serves(), "{} continues", program.name);
            running.end_with(Signal::TERM, program.name);
        }
        assert_eq!(processes(), []);
    });
}

#[test]
fn whatever_a_parent_has_left_to_its_signals_a_program_serves_and_ends() {
    const NAME: &str = "whatever_a_parent_has_left_to_its_signals_a_program_serves_and_ends";
    const BLOCKED: &str = "env --block-signal=TERM,INT,HUP,CHLD,PIPE,ALRM,USR1,USR2,URG,TSTP,CONT,TTIN,TTOU,SEGV,BUS,IO";
    in_own_host(NAME, || {
        let place = Place::new();
        for program in PROGRAMS {
            if program.needs_kvm && !kvm_is_usable(NAME) {
                continue;
            }
            for (below, condition, signal) in [
                (
                    "env --ignore-signal=CHLD,PIPE,ALRM,USR1,USR2,URG",
                    ":",
                    Signal::TERM,
                ),
                (BLOCKED, ":", Signal::TERM),
                ("", "trap '' TERM", Signal::INT),
                ("", "trap '' TERM HUP", Signal::INT),
                ("", "trap '' INT HUP", Signal::TERM),
            ] {
                let what = format!("{}, {below}{condition}", program.name);
                let running = place.start_in(program, condition, below);
                assert!(running.serves(), "{what}");
                for (number, name) in processes() {
                    // dnsmasq must heed signals as well: otherwise it would be killed only later.
                    assert!(name != "dnsmasq" || blocks_none(number), "{what}");
                }
                let start = Instant::now();
                running.end_with(signal, &what);
                // What does not heed its signal is killed after 10 seconds.
                assert!(start.elapsed() < KILLED, "{what}: {:?}", start.elapsed());
                eventually("all have ended", || processes().is_empty());
            }
        }
    });
}

/// How long `bulkhead` waits for a process that is to end before it kills it.
const KILLED: Duration = Duration::from_secs(10);

fn blocks_none(process: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    // It may have ended.
    blocked.is_none_or(|mask| mask.trim().trim_start_matches('0').is_empty())
}

#[test]
fn the_processes_of_a_bulkhead_that_is_killed_end_although_it_ignored_sigterm() {
    const NAME: &str = "the_processes_of_a_bulkhead_that_is_killed_end_although_it_ignored_sigterm";
    if !kvm_is_usable(NAME) {
        return;
    }
    in_own_host(NAME, || {
        let place = Place::new();
        let running = place.start(&PROGRAMS[0], "trap '' TERM HUP INT");
        assert!(running.serves());
        running.signal(Signal::KILL);
        eventually("all have ended", || processes().is_empty());
    });
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    const NAME: &str = "modes_do_not_depend_on_the_umask";
    in_own_host(NAME, || {
        let place = Place::new();
        for program in PROGRAMS {
            if program.needs_kvm && !kvm_is_usable(NAME) {
                continue;
            }
            for umask in ["umask 0", "umask 0777", "umask 022"] {
                let running = place.start(program, umask);
                assert!(running.serves(), "{}", program.name);
                for &(path, mode) in program.modes {
                    let found = fs::metadata(path).unwrap_or_else(|e| panic!("{path}: {e}"));
                    let found = found.permissions().mode() & 0o777;
                    assert_eq!(found, mode, "{path} of {}, {umask}", program.name);
                }
                running.end_with(Signal::TERM, program.name);
            }
        }
    });
}

#[test]
fn what_bulkhead_has_inherited_does_not_reach_its_processes() {
    const NAME: &str = "what_bulkhead_has_inherited_does_not_reach_its_processes";
    if !kvm_is_usable(NAME) {
        return;
    }
    in_own_host(NAME, || {
        let place = Place::new();
        let secret = "/tmp/secret-of-this-test";
        fs::write(secret, "").unwrap();
        let running = place.start(&PROGRAMS[0], &format!("exec 3<{secret} 9<{secret}"));
        assert!(running.serves());
        let mut seen = 0;
        for (process, name) in processes() {
            if process == running.id() {
                continue;
            }
            seen += 1;
            for entry in fs::read_dir(format!("/proc/{process}/fd"))
                .into_iter()
                .flatten()
            {
                let target = fs::read_link(entry.unwrap().path()).unwrap_or_default();
                assert_ne!(target, Path::new(secret), "{name} has it");
            }
        }
        assert!(seen >= 5, "{:?}", processes());
        fs::remove_file(secret).unwrap();
        running.end_with(Signal::TERM, "bulkhead run");
    });
}

#[test]
fn each_process_of_a_guest_has_process_numbers_of_its_own() {
    const NAME: &str = "each_process_of_a_guest_has_process_numbers_of_its_own";
    if !kvm_is_usable(NAME) {
        return;
    }
    in_own_host(NAME, || {
        let place = Place::new();
        let running = place.start(&PROGRAMS[0], ":");
        assert!(running.serves());
        let namespace = |process: u32| fs::read_link(format!("/proc/{process}/ns/pid")).unwrap();
        let mut namespaces = vec![namespace(running.id())];
        for (process, name) in processes() {
            if ["bulkhead-vmm", "bulkhead-block", "bulkhead-net"].contains(&name.as_str()) {
                namespaces.push(namespace(process));
            }
        }
        assert_eq!(namespaces.len(), 4, "{:?}", processes());
        namespaces.sort();
        namespaces.dedup();
        assert_eq!(namespaces.len(), 4);
        running.end_with(Signal::TERM, NAME);
    });
}

#[test]
fn as_the_first_process_bulkhead_takes_in_orphans_and_heeds_signals() {
    const NAME: &str = "as_the_first_process_bulkhead_takes_in_orphans_and_heeds_signals";
    if !kvm_is_usable(NAME) {
        return;
    }
    in_own_host(NAME, || {
        let place = Place::new();
        // A process that is left behind by its parent, in the container's namespace.
        let container = "unshare --pid --fork --kill-child --mount-proc sh -c '(sleep 0.2 & ) ; exec \"$@\"' sh";
        let running = place.start_in(&PROGRAMS[0], ":", container);
        assert!(running.serves());
        let zombie = || {
            let entries = fs::read_dir("/proc").unwrap();
            let stats =
                entries.filter_map(|e| fs::read_to_string(e.unwrap().path().join("stat")).ok());
            let mut stats = stats.map(|stat| stat.contains("(sleep)"));
            stats.any(|is_it| is_it)
        };
        eventually("the orphan is taken in", || !zombie());
        let first = processes()
            .into_iter()
            .filter(|(_, name)| name == "bulkhead");
        let first = first.map(|(number, _)| number).min().unwrap();
        program::kill(first, Signal::TERM);
        let (status, said) = running.end();
        assert_eq!((status, said.as_str()), (Some(0), ""));
        assert!(!Path::new(RUN).join("bulkhead").exists());
    });
}

#[test]
fn odd_paths_are_taken_as_they_are() {
    use std::os::unix::ffi::OsStrExt;
    const NAME: &str = "odd_paths_are_taken_as_they_are";
    if !kvm_is_usable(NAME) {
        return;
    }
    in_own_host(NAME, || {
        let place = Place::new();
        for name in [
            &b"a b"[..],
            b"a,b",
            b"new\nline",
            "grüß dich".as_bytes(),
            b"\xff\xfe",
            b"-x",
            b"\"q\"",
            b"=,=",
        ] {
            let folder = Path::new(program::FOLDER).join(std::ffi::OsStr::from_bytes(name));
            fs::create_dir(&folder).unwrap();
            fs::copy(bulkhead_tests::guest::kernel(), folder.join("guest")).unwrap();
            fs::File::create(folder.join("disk.raw"))
                .unwrap()
                .set_len(1 << 20)
                .unwrap();
            let (status, said) = place.run_in(&folder);
            assert_eq!((status, said.as_str()), (Some(0), ""), "{folder:?}");
        }
    });
}

#[test]
fn a_runtime_folder_that_others_can_change_is_refused() {
    in_own_host("a_runtime_folder_that_others_can_change_is_refused", || {
        let place = Place::new();
        for (prepare, says) in [
            ("mkdir -m 777 /run/bulkhead", "chmod o-w /run/bulkhead"),
            (
                "mkdir /run/bulkhead && chown 4711 /run/bulkhead",
                "belongs to another user",
            ),
            ("touch /run/bulkhead", "is not a folder"),
            (
                "ln -s /nowhere /run/bulkhead",
                "/run/bulkhead leads nowhere",
            ),
            (
                "mkdir -p /run/bulkhead/g/disks",
                "/run/bulkhead/g/disks is in the way",
            ),
            (
                "ln -s /tmp /run/b && mkdir /run/bulkhead && ln -s /tmp /run/bulkhead/g",
                "/run/bulkhead/g is not a folder: remove it",
            ),
        ] {
            let running = place.start(&PROGRAMS[0], prepare);
            let (status, said) = running.end();
            assert_eq!(status, Some(1), "{prepare}: {said}");
            assert!(
                said.starts_with("error: ") && said.contains(says),
                "{prepare}: {said}"
            );
            assert_eq!(said.lines().count(), 1, "{said}");
            let remove = std::process::Command::new("sh")
                .args(["-c", "rm -rf /run/bulkhead /run/b"])
                .status();
            assert!(remove.unwrap().success());
        }
    });
}
