//! Hosts that lack something: mounts, a writable file system, a name for the user, seccomp, locks; and an emulator.

#![allow(clippy::disallowed_macros, reason = "a test prints why it was skipped")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::pair::{Outcome, must};
use super::{TOOL, folder, same, shell};

/// The same with one that has `unshare`'s privileges.
fn unshared(folder: &Path, options: &str, line: &str) -> Option<Outcome> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can set it up");
        return None;
    }
    let mut unshare = Command::new("unshare");
    let unshare = unshare.args(options.split(' ')).args(["sh", "-c", line]);
    Some(
        unshare
            .current_dir(folder)
            .env("T", TOOL)
            .output()
            .unwrap()
            .into(),
    )
}

#[test]
fn a_host_without_what_others_have_is_enough() {
    let folder = folder();
    let path = folder.path();
    for (options, before) in [
        ("--mount", "umount -l /proc"),
        ("--mount", "mount -t tmpfs none /dev"),
        ("--mount", "umount -l /proc; mount -t tmpfs none /dev"),
        ("--mount --pid --fork --mount-proc", "true"),
        ("--mount --pid --fork", "umount -l /proc"),
        ("--mount", "export TMPDIR=/nowhere; unset HOME"),
    ] {
        let line = format!(
            "{before}; rm -f o p; $T info over >info && $T convert -O raw over o && $T convert -O qcow2 over p && $T compare -q o p && $T check -q p"
        );
        let Some(done) = unshared(path, options, &line) else {
            return;
        };
        assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""), "{line}");
        assert!(same(path, "s.raw", "o"), "{line}");
        let found = fs::read_dir(path).unwrap().count();
        assert_eq!(found, 6, "{line}: something was left");
    }
}

#[test]
fn a_process_with_the_number_1_hears_signals() {
    let folder = folder();
    // 1 of a namespace, and what the signal comes from is outside of it.
    let line = "unshare --pid --fork --mount-proc $T convert -r 1k -f raw -O raw s.raw o & \
        until p=$(pgrep -P $!) && grep -q Threads:.[2-9] /proc/$p/status; do :; done; kill $p; wait $!";
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can set it up");
        return;
    }
    assert_eq!(shell(folder.path(), line).status, Some(128 + 15));
    assert!(!folder.path().join("o").exists());
}

#[test]
fn a_folder_that_is_gone_is_not_needed() {
    let folder = folder();
    let path = folder.path();
    let line = "F=$PWD; mkdir d; cd d; rmdir ../d; $T info $F/over && $T convert -O raw $F/over $F/o && $T create -q -f qcow2 -b $F/q -F qcow2 $F/n";
    let done = shell(path, line);
    assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""));
    assert!(same(path, "s.raw", "o"));
    let refused = shell(path, "mkdir e; cd e; rmdir ../e; $T create -f raw x 1M");
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("No such file or directory"),
        "{refused:?}"
    );
}

#[test]
fn a_read_only_file_system_is_read_and_refused() {
    let folder = folder();
    let line = "mkdir d; mount --bind . d; mount -o remount,ro,bind d; cd d; \
        $T info over >/dev/null && $T check -q q && $T compare -q q s.raw || exit 9; \
        for v in 'create -q -f raw n 1M' 'create -q -f raw s.raw 1M' 'convert -O raw q n' 'resize q 2M' 'snapshot -c x q'; do \
        $T $v; [ $? = 1 ] || exit 8; done";
    let Some(done) = unshared(folder.path(), "--mount", line) else {
        return;
    };
    assert_eq!(done.status, Some(0), "{done:?}");
    assert_eq!(done.stderr.lines().count(), 5, "{done:?}");
    assert!(
        done.stderr
            .lines()
            .all(|line| line.contains("Read-only file system")),
        "{done:?}"
    );
}

#[test]
fn a_user_without_a_name_is_a_user() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can set it up");
        return;
    }
    let folder = folder();
    let line = "chmod 777 .; chmod 644 *; exec setpriv --reuid=987654 --regid=987654 --clear-groups env -i $T convert -O raw over o";
    let done = shell(folder.path(), line);
    assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""));
    assert!(same(folder.path(), "s.raw", "o"));
}

/// A library that makes functions of the C library fail as a host would that lacks something.
fn shim(folder: &Path) -> PathBuf {
    let source = r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <errno.h>
        #include <fcntl.h>
        #include <stdarg.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/syscall.h>
        static int number(const char *name) { char *v = getenv(name); return v ? atoi(v) : 0; }
        static int fail(int error) { errno = error; return -1; }
        #define LOCKS(name) int name(int fd, int cmd, ...) { \
            va_list args; va_start(args, cmd); void *arg = va_arg(args, void *); va_end(args); \
            int set = cmd == F_OFD_SETLK || cmd == F_OFD_SETLKW || cmd == F_SETLK || cmd == F_SETLKW; \
            int get = cmd == F_OFD_GETLK || cmd == F_GETLK; \
            static int locks; locks |= set || get; \
            if (locks && number("NO_FCNTL")) return fail(number("NO_FCNTL")); \
            if (set && number("NO_SETLK")) return fail(number("NO_SETLK")); \
            if (get && number("NO_GETLK")) return fail(number("NO_GETLK")); \
            static int (*real)(int, int, ...); if (!real) real = dlsym(RTLD_NEXT, #name); \
            return real(fd, cmd, arg); }
        LOCKS(fcntl)
        LOCKS(fcntl64)
        long syscall(long n, ...) {
            va_list args; va_start(args, n);
            long a = va_arg(args, long), b = va_arg(args, long), c = va_arg(args, long);
            long d = va_arg(args, long), e = va_arg(args, long), f = va_arg(args, long); va_end(args);
            if (n == SYS_seccomp && number("NO_SECCOMP")) return fail(number("NO_SECCOMP"));
            if (n >= 444 && n <= 446 && number("NO_LANDLOCK")) return fail(number("NO_LANDLOCK"));
            static long (*real)(long, ...); if (!real) real = dlsym(RTLD_NEXT, "syscall");
            return real(n, a, b, c, d, e, f); }
    "#;
    fs::write(folder.join("shim.c"), source).unwrap();
    let built = ["gcc", "-shared", "-fPIC", "-o", "shim.so", "shim.c", "-ldl"];
    must("gcc", folder, &built);
    folder.join("shim.so")
}

#[test]
fn what_cannot_be_confined_says_so_once_and_works() {
    let folder = folder();
    let path = folder.path();
    let shim = shim(path).display().to_string();
    for missing in [
        "NO_SECCOMP=22",
        "NO_SECCOMP=38",
        "NO_SECCOMP=1",
        "NO_LANDLOCK=38",
        "NO_LANDLOCK=95",
        "NO_LANDLOCK=1",
    ] {
        for verb in ["info over", "check q", "convert -O raw over o"] {
            let done = shell(path, &format!("{missing} LD_PRELOAD={shim} $T {verb}"));
            assert_eq!(done.status, Some(0), "{missing} {verb}: {done:?}");
            let warned = done.stderr.lines().count();
            // A kernel without Landlock is an ordinary one.
            let is_ordinary = missing.starts_with("NO_LANDLOCK");
            assert_eq!(
                warned,
                usize::from(!is_ordinary),
                "{missing} {verb}: {done:?}"
            );
            let is_said = done
                .stderr
                .starts_with("image-tool: warning: the process is not confined: ");
            assert!(is_said || is_ordinary, "{done:?}");
        }
        assert!(same(path, "s.raw", "o"));
    }
    let line = format!("NO_SECCOMP=22 LD_PRELOAD={shim} $T convert -p -O raw over o 2>&1");
    let done = shell(path, &line);
    let lines: Vec<_> = done.stdout.split(['\n', '\r']).collect();
    assert_eq!(lines[0].trim(), "(0.00/100%)", "{done:?}");
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("image-tool: warning: ")),
        "{done:?}"
    );
    assert!(
        done.stdout.contains("/100%)\r\nimage-tool: warning: "),
        "{done:?}"
    );
    assert!(done.stdout.ends_with("(100.00/100%)\r\n"), "{done:?}");
}

#[test]
fn under_an_emulator_that_has_a_thread_of_its_own_it_works() {
    let folder = folder();
    let path = folder.path();
    if Command::new("qemu-x86_64")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("skipped: qemu-x86_64 (package qemu-user) is not installed");
        return;
    }
    for verb in [
        "info over",
        "map over",
        "check q",
        "convert -O raw over o",
        "convert -c -O qcow2 over c",
        "compare over c",
        "resize -f raw o 2M",
        "resize -f raw --shrink o 1M",
        "snapshot -c one c",
    ] {
        let done = shell(path, &format!("qemu-x86_64 $T {verb}"));
        assert_eq!(done.status, Some(0), "{verb}: {done:?}");
        let lines: Vec<_> = done.stderr.lines().collect();
        assert!(
            lines.len() == 1 && lines[0].contains("warning: the process is not confined"),
            "{verb}: {done:?}"
        );
    }
    assert!(same(path, "s.raw", "o"));
}

#[test]
fn where_there_are_no_locks_a_shared_image_needs_none() {
    let folder = folder();
    let path = folder.path();
    let shim = shim(path).display().to_string();
    let run = |environment: &str, verb: &str| {
        shell(path, &format!("{environment} LD_PRELOAD={shim} $T {verb}"))
    };
    for error in ["37", "95", "38"] {
        // What is read whatever others do.
        let shared = [
            "info -U q",
            "info -U -b over",
            "map -U over",
            "check -U q",
            "snapshot -U -l q",
            "measure -U -O raw q",
            "compare -U over s.raw",
            "info --image-opts driver=qcow2,force-share=on,file.driver=file,file.filename=q",
            "info --image-opts driver=qcow2,file.driver=file,file.filename=q,file.locking=off",
        ];
        for verb in shared {
            let done = run(&format!("NO_SETLK={error}"), verb);
            assert_eq!(
                (done.status, done.stderr.as_str()),
                (Some(0), ""),
                "{error} {verb}"
            );
        }
        // A host that answers so from the first lock on to whatever else is asked of a descriptor is met in the same
        // way.
        for verb in shared.iter().chain(&[
            "convert -U -O raw over o",
            "convert -U -O qcow2 q s.raw o",
            "dd -U -f qcow2 if=over of=o bs=64k",
            "bench -U -c 1 q",
        ]) {
            let done = run(&format!("NO_FCNTL={error}"), verb);
            assert_eq!(
                (done.status, done.stderr.as_str()),
                (Some(0), ""),
                "{error} {verb}"
            );
        }
        // What is to keep others off says that it cannot.
        for verb in [
            "info q",
            "resize q 1M",
            "convert -O raw q o",
            "create -q -f raw n 1M",
            "convert -f qcow2 -O raw -n q s.raw",
        ] {
            let refused = run(&format!("NO_SETLK={error}"), verb);
            assert_eq!(refused.status, Some(1), "{error} {verb}: {refused:?}");
            assert!(
                refused.stderr.contains("Failed to lock byte 10"),
                "{error} {verb}: {refused:?}"
            );
        }
        // Not even then is a source its own target.
        for verb in [
            "convert -f raw -O raw hard s.raw",
            "convert -f raw -O qcow2 s.raw hard",
            "convert -n -f raw -O raw s.raw s.raw",
            "convert -n -O qcow2 over q",
            "convert -O raw over qhard",
            "dd -f raw if=s.raw of=hard bs=1M",
        ] {
            let before = shell(
                path,
                "ln -f s.raw hard; ln -f q qhard; sha256sum s.raw q >sums",
            );
            assert_eq!(before.status, Some(0));
            let refused = run(&format!("NO_SETLK={error} NO_GETLK={error}"), verb);
            assert_eq!(refused.status, Some(1), "{error} {verb}: {refused:?}");
            assert!(
                refused.stderr.ends_with("is read by this command, too\n"),
                "{verb}: {refused:?}"
            );
            let after = shell(
                path,
                "sha256sum --status -c sums; s=$?; rm hard qhard; exit $s",
            );
            assert_eq!(after.status, Some(0), "{error} {verb}");
        }
        // Where the system call for locks does not exist, no process has one.
        for verb in [
            "info q",
            "resize q 1M",
            "convert -O raw q o",
            "check -r all q",
        ] {
            let done = run(&format!("NO_SETLK={error} NO_GETLK={error}"), verb);
            assert_eq!(
                (done.status, done.stderr.as_str()),
                (Some(0), ""),
                "{error} {verb}"
            );
        }
    }
}
