//! No space, no quota, a medium with errors: every verb that writes ends with status 1 and says why, and loses nothing
//! that was there.

#![allow(clippy::disallowed_macros, reason = "a test prints why it was skipped")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fs;
use std::path::Path;
use std::process::Command;

use pair::{Outcome, TOOL, must, reference_is_there, shell};
use tempfile::TempDir;

/// What writes, and which image is whole afterwards all the same.
const VERBS: [(&str, &str); 20] = [
    ("create -q -f raw -o preallocation=full n 9M", ""),
    ("create -q -f raw -o preallocation=falloc n 9M", ""),
    ("create -q -f qcow2 -o preallocation=full n 9M", ""),
    ("create -q -f qcow2 -o preallocation=falloc n 9M", ""),
    ("convert -f raw -O raw s n", ""),
    ("convert -f raw -O qcow2 s n", ""),
    ("convert -c -f raw -O qcow2 s n", ""),
    ("convert -C -f raw -O raw s n", ""),
    ("convert -t writeback -f raw -O qcow2 s n", ""),
    ("convert -n -f raw -O qcow2 s empty", ""),
    ("convert -n -f raw -O raw s thin", ""),
    ("dd -f raw -O raw if=s of=n bs=1M", ""),
    ("dd -f raw -O qcow2 if=s of=n bs=1M", ""),
    ("resize -q -f raw --preallocation=full thin 9M", ""),
    ("resize -q -f raw --preallocation=falloc thin 9M", ""),
    ("resize -q --preallocation=full small 9M", "small"),
    ("resize -q --preallocation=falloc small 9M", "small"),
    ("commit -q over", "over"),
    ("rebase -f qcow2 -b '' over", "over"),
    ("bench -q -f qcow2 -w -c 64 -s 64k empty", "empty"),
];

/// Shell that makes the images all these need; `$S` is where the data is.
const IMAGES: &str = "set -e; head -c 4M /dev/urandom >$S/s; ln -sf $S/s s; \
    $T create -q -f qcow2 empty 8M; $T create -q -f qcow2 small 1M; truncate -s 4M thin; \
    $T convert -f raw -O qcow2 s $S/base; ln -sf $S/base base; \
    $T create -q -f qcow2 below 4M; $T create -q -f qcow2 -b below -F qcow2 over; \
    head -c 1M s >$S/m; $T convert -n -f raw -O qcow2 $S/m small; \
    qemu-io -f qcow2 -c 'write -s s 3M 1M' below >/dev/null; \
    qemu-io -c 'write -s s 0 64k' over >/dev/null";

#[test]
fn a_full_file_system_is_one_clear_error_and_loses_nothing() {
    if !reference_is_there() || !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can set it up");
        return;
    }
    for (verb, whole) in VERBS {
        let space: TempDir = tempfile::tempdir().unwrap();
        // What was allocated for a write that failed is given back when the image is next opened to be written.
        let leaks = if verb.starts_with("bench") { 3 } else { 0 };
        let line = format!(
            "export S=$PWD; mkdir at; mount -t tmpfs -o size=8M tmpfs at; cd at; ({IMAGES}) || exit 7; \
             qemu-io -c 'write -s s 64k 2M' over >/dev/null; \
             find . | sort >$S/before; left=$(df --output=avail -k . | tail -1); \
             head -c $(( (left - 200) * 1024 )) /dev/zero >filler; \
             sha256sum over below small 2>/dev/null >$S/sums; \
             $T {verb}; status=$?; rm filler; find . | sort | diff $S/before - >&2 || exit 6; \
             case '{whole}' in '') ;; *) qemu-img check -q {whole} 2>/dev/null || [ $? = {leaks} ] || exit 5;; esac; exit $status"
        );
        let mut unshare = Command::new("unshare");
        let unshare = unshare.args(["--mount", "sh", "-c", &line]);
        let done = unshare.current_dir(space.path()).env("T", TOOL).output();
        let done = Outcome::from(done.unwrap());
        assert_eq!(done.status, Some(1), "{verb}: {done:?}");
        let first = done.stderr.lines().next().unwrap_or_default();
        assert!(
            first.starts_with("image-tool: ") && first.contains("No space left on device"),
            "{verb}: {done:?}"
        );
        let others = done.stderr.lines().skip(1);
        let is_hint = |line: &str| line.contains(" is incomplete");
        assert!(others.into_iter().all(is_hint), "{verb}: {done:?}");
    }
}

#[test]
fn a_limit_of_file_sizes_is_named_with_the_file() {
    let folder = tempfile::tempdir().unwrap();
    for (verb, file) in [
        ("convert -f raw -O raw s n", "n"),
        ("convert -f raw -O raw -o preallocation=falloc s n", "n"),
        ("convert -f raw -O qcow2 -o preallocation=full s n", "n"),
        ("convert -S 0 -f raw -O qcow2 s n", ""),
        ("dd -f raw -O raw if=s of=n bs=1M", "n"),
        ("dd -f raw -O qcow2 if=s of=n bs=1M", ""),
    ] {
        let line = format!("rm -f n; truncate -s 4M s; trap '' XFSZ; ulimit -f 1024; $T {verb}");
        let done = shell(folder.path(), &line);
        assert_eq!(done.status, Some(1), "{verb}: {done:?}");
        let said = done.stderr.lines().next().unwrap_or_default();
        let names = said.starts_with(&format!("image-tool: {file}"));
        assert!(
            names && said.ends_with(": File too large"),
            "{verb}: {said}"
        );
        assert!(!folder.path().join("n").exists(), "{verb}");
    }
}

/// Runs the verb with its `number`th write failing; `None` if it makes no such write.
fn with_failing_write(folder: &Path, verb: &str, error: &str, number: usize) -> Option<Outcome> {
    let calls = "pwrite64,pwritev,pwritev2,copy_file_range";
    let line = format!(
        "strace -f -qq -o log -e trace={calls} -e inject={calls}:error={error}:when={number} $T {verb}"
    );
    let done = shell(folder, &line);
    let log = fs::read_to_string(folder.join("log")).unwrap();
    log.contains("INJECTED").then_some(done)
}

#[test]
fn a_write_that_fails_is_one_clear_error_whichever_it_is() {
    if !reference_is_there() {
        return;
    }
    let more = [
        ("snapshot -c one small", "small"),
        ("bitmap --add small b", "small"),
        ("amend -q -f qcow2 -o refcount_bits=64 small", "small"),
        ("amend -q -f qcow2 -o lazy_refcounts=on small", "small"),
        ("rebase -u -f qcow2 -b base -F qcow2 over", "over"),
        ("resize -q --shrink small 512k", "small"),
    ];
    for (verb, whole) in VERBS.into_iter().chain(more) {
        let mut errors = [
            ("EDQUOT", "Disk quota exceeded"),
            ("EIO", "Input/output error"),
            ("ENOSPC", "No space left on device"),
        ]
        .into_iter()
        .cycle();
        let mut failed = 0;
        for number in [1, 2, 3, 5, 8, 13] {
            let (error, words) = errors.next().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path();
            assert_eq!(
                shell(
                    folder,
                    &format!("S=$PWD; {}", IMAGES.replace("ln -sf", ": "))
                )
                .status,
                Some(0)
            );
            let Some(done) = with_failing_write(folder, verb, error, number) else {
                break;
            };
            if verb.contains("-C ") && done.status == Some(0) {
                // What the kernel cannot copy is copied by hand.
                assert_eq!(shell(folder, "cmp s n").status, Some(0), "{verb}");
                failed += 1;
                continue;
            }
            let why = format!("{verb}: write {number} fails with {error}: {done:?}");
            assert_eq!(done.status, Some(1), "{why}");
            let said = done.stderr.lines().next().unwrap_or_default();
            assert!(
                said.starts_with("image-tool: ") && said.contains(words),
                "{why}"
            );
            assert!(!folder.join("n").exists(), "{why}");
            let strays = fs::read_dir(folder).unwrap().filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                name.to_string_lossy().contains("unfinished")
            });
            assert_eq!(strays.count(), 0, "{why}");
            if !whole.is_empty() {
                let checked = Command::new("qemu-img")
                    .args(["check", "-q", whole])
                    .current_dir(folder)
                    .output()
                    .unwrap();
                // Leaks at most.
                assert!(
                    matches!(checked.status.code(), Some(0 | 3)),
                    "{why}: {checked:?}"
                );
            }
            failed += 1;
        }
        let writes_nothing = verb.contains("falloc");
        assert!(failed > 0 || writes_nothing, "{verb} writes nothing");
    }
}

#[test]
fn what_is_reported_when_a_file_is_closed_is_an_error() {
    // As NFS with quotas: the first close of the new file returns the error.
    let source = r#"
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <errno.h>
        #include <fcntl.h>
        #include <stdlib.h>
        #include <sys/stat.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        int close(int fd) {
            static int (*real)(int); if (!real) real = dlsym(RTLD_NEXT, "close");
            struct stat found; static off_t reported;
            int flags = fcntl(fd, F_GETFL);
            int is_new = syscall(SYS_fstat, fd, &found) == 0 && S_ISREG(found.st_mode) && (flags & O_ACCMODE) == O_RDWR
                && (found.st_nlink == 0 || found.st_nlink == 2) && found.st_blocks * 512 > (off_t)65536 + reported;
            int done = real(fd);
            if (is_new && done == 0) { reported = found.st_blocks * 512; errno = EDQUOT; return -1; }
            return done; }
    "#;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("shim.c"), source).unwrap();
    must(
        "gcc",
        folder,
        &["gcc", "-shared", "-fPIC", "-o", "shim.so", "shim.c", "-ldl"],
    );
    assert_eq!(shell(folder, "head -c 4M /dev/urandom >s").status, Some(0));
    for verb in [
        "convert -f raw -O raw s n",
        "convert -f raw -O qcow2 s n",
        "convert -c -f raw -O qcow2 s n",
        "dd -f raw -O qcow2 if=s of=n bs=1M",
    ] {
        for before in ["true", "echo old >n; ln n other"] {
            let line = format!("rm -f n other; {before}; LD_PRELOAD=./shim.so $T {verb}");
            let done = shell(folder, &line);
            assert_eq!(done.status, Some(1), "{line}: {done:?}");
            let said = done.stderr.lines().next().unwrap_or_default();
            assert_eq!(
                said, "image-tool: Could not write 'n': Disk quota exceeded",
                "{line}"
            );
            assert_eq!(folder.join("n").exists(), before != "true", "{line}");
        }
    }
}
