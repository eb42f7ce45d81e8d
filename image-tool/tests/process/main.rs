//! How the tool behaves as a process: ignored signals, closed and full descriptors, limits; on which hosts.

#![allow(clippy::disallowed_macros, reason = "a test prints why it was skipped")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod hosts;
#[path = "../pair/mod.rs"]
mod pair;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use pair::{Outcome, TOOL, reference_is_there, shell};
use tempfile::TempDir;

/// A folder with `s.raw`, 1 MiB of data, and `q`, the same as qcow2.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let data: Vec<u8> = (0..1u32 << 20).map(|at| (at % 251) as u8 + 1).collect();
    fs::write(folder.path().join("s.raw"), data).unwrap();
    let line = "$T convert -f raw -O qcow2 s.raw q && $T create -q -f qcow2 -b q -F qcow2 over";
    assert_eq!(shell(folder.path(), line).status, Some(0));
    folder
}

/// Whether two files have the same content.
fn same(folder: &Path, a: &str, b: &str) -> bool {
    fs::read(folder.join(a)).unwrap() == fs::read(folder.join(b)).unwrap()
}

fn send(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-s", signal, &pid]).status();
    assert!(sent.unwrap().success());
}

/// A conversion that takes some seconds, started by a shell with these words before it, once it hears signals.
fn slow(folder: &Path, before: &str) -> Child {
    let line = format!("{before} exec $T convert -r 512k -f raw -O qcow2 s.raw o");
    let child = Command::new("sh")
        .args(["-c", &line])
        .current_dir(folder)
        .env("T", TOOL)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // The first thread that it starts is the one that hears them.
    let status = format!("/proc/{}/status", child.id());
    let is_ready = || {
        let text = fs::read_to_string(&status).unwrap();
        text.starts_with("Name:\timage-tool") && !text.contains("Threads:\t1\n")
    };
    while !is_ready() {
        std::thread::yield_now();
    }
    child
}

#[test]
fn a_signal_that_was_ignored_at_start_stays_ignored() {
    for signal in ["HUP", "INT", "TERM"] {
        let folder = folder();
        let mut child = slow(folder.path(), &format!("trap '' {signal};"));
        send(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(0), "SIG{signal}");
        assert_eq!(
            shell(folder.path(), "$T compare -q s.raw o").status,
            Some(0)
        );
    }
}

#[test]
fn under_nohup_the_end_of_the_session_changes_nothing() {
    let folder = folder();
    let mut child = slow(folder.path(), "nohup sh -c 'exec \"$0\" \"$@\"' true;");
    drop(child.kill());
    drop(child.wait());
    let line = "nohup $T convert -r 1M -f raw -O qcow2 s.raw o >/dev/null 2>&1 & p=$!; \
        until grep -q Threads:.[2-9] /proc/$p/status; do :; done; kill -HUP $p; wait $p";
    assert_eq!(shell(folder.path(), line).status, Some(0));
    assert_eq!(
        shell(folder.path(), "$T compare -q s.raw o").status,
        Some(0)
    );
}

#[test]
fn a_signal_that_was_blocked_at_start_ends_it() {
    for (signal, number) in [("HUP", 1), ("INT", 2), ("TERM", 15)] {
        let folder = folder();
        let line = format!(
            "env --block-signal=HUP,INT,TERM,CHLD,PIPE $T convert -r 512k -f raw -O qcow2 s.raw o & p=$!; \
             until grep -q Threads:.[2-9] /proc/$p/status || ! kill -0 $p; do :; done; kill -{signal} $p; wait $p"
        );
        let status = shell(folder.path(), &line).status;
        // A shell starts what runs in the background so that it ignores SIGINT.
        let ends = if signal == "INT" { 0 } else { 128 + number };
        assert_eq!(status, Some(ends), "SIG{signal}");
        assert_eq!(folder.path().join("o").exists(), signal == "INT");
    }
}

#[test]
fn a_signal_that_was_not_ignored_ends_it() {
    for (signal, number) in [("HUP", 1), ("INT", 2), ("TERM", 15)] {
        let folder = folder();
        let mut child = slow(folder.path(), "");
        send(&child, signal);
        assert_eq!(
            child.wait().unwrap().code(),
            Some(128 + number),
            "SIG{signal}"
        );
        assert!(!folder.path().join("o").exists());
    }
}

#[test]
fn a_stopped_one_goes_on() {
    let folder = folder();
    let mut child = slow(folder.path(), "");
    send(&child, "TSTP");
    let stat = format!("/proc/{}/stat", child.id());
    while !fs::read_to_string(&stat).unwrap().contains(") T ") {
        std::thread::yield_now();
    }
    send(&child, "CONT");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(
        shell(folder.path(), "$T compare -q s.raw o").status,
        Some(0)
    );
}

#[test]
fn no_file_takes_the_place_of_a_descriptor_that_was_closed() {
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        for verb in [
            "convert -f raw -O raw s.raw o",
            "convert -p -f raw -O qcow2 s.raw o",
            "convert -f raw -O raw s.raw missing/o",
            "create -f raw n 1M",
            "info q",
            "map q",
            "check q",
            "info missing",
            "snapshot -c one q",
            "resize q 2M",
            "no-such-verb",
        ] {
            let folder = folder();
            let before = fs::read(folder.path().join("s.raw")).unwrap();
            let done = shell(folder.path(), &format!("$T {verb} {closed}"));
            let status = i32::from(verb.contains("missing") || verb.contains("no-such"));
            assert_eq!(done.status, Some(status), "{verb} {closed}: {done:?}");
            assert!(fs::read(folder.path().join("s.raw")).unwrap() == before);
            if verb.ends_with(" o") && status == 0 {
                let compared = shell(folder.path(), "$T compare -q s.raw o; $T check -q q");
                assert_eq!(compared.status, Some(0), "{verb} {closed}");
            }
            let checked = shell(folder.path(), "$T check -q q");
            assert_eq!(checked.status, Some(0), "{verb} {closed}");
        }
    }
}

#[test]
fn an_answer_that_cannot_be_written_is_an_error() {
    let folder = folder();
    let path = folder.path();
    assert_eq!(shell(path, "$T snapshot -c one q").status, Some(0));
    for verb in [
        "info q",
        "info --output=json q",
        "info -b over",
        "map q",
        "map --output=json q",
        "check q",
        "check --output=json q",
        "measure -O raw q",
        "measure -O qcow2 --output=json q",
        "snapshot -l q",
        "bench -c 1 q",
        "--help",
        "--version",
        "create --help",
        "create -f qcow2 -o help",
        "--completions bash",
    ] {
        let full = shell(path, &format!("$T {verb} >/dev/full"));
        let said = "image-tool: Could not write to standard output: No space left on device\n";
        assert_eq!(
            (full.status, full.stderr.as_str()),
            (Some(1), said),
            "{verb}"
        );
        let broken = shell(
            path,
            &format!("mkfifo p; exec 8<>p 9>p; exec 8<&-; $T {verb} >&9; s=$?; rm p; exit $s"),
        );
        let said = "image-tool: Could not write to standard output: Broken pipe\n";
        assert_eq!(
            (broken.status, broken.stderr.as_str()),
            (Some(1), said),
            "{verb}"
        );
    }
}

#[test]
fn work_that_is_only_announced_is_done_whoever_reads() {
    for verb in [
        "create -f raw n 1M",
        "resize q 2M",
        "convert -p -f raw -O raw s.raw o",
        "commit over",
        "compare s.raw s.raw",
    ] {
        let folder = folder();
        let done = shell(folder.path(), &format!("$T {verb} >/dev/full"));
        assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""), "{verb}");
    }
}

#[test]
fn a_pipe_that_does_not_wait_gets_all_of_the_answer() {
    let folder = folder();
    let path = folder.path();
    // More than a pipe holds, and the other end reads late.
    let made = "$T create -q -f raw many 64M; for i in $(seq 0 1500); do printf x | dd of=many bs=1 seek=$((i*16384)) conv=notrunc 2>/dev/null; done";
    assert_eq!(shell(path, made).status, Some(0));
    let all = shell(path, "$T map -f raw --output=json many");
    assert!(all.stdout.len() > 100_000, "{} bytes", all.stdout.len());
    let script = "import os,subprocess,sys,fcntl,time\n\
        r,w=os.pipe()\n\
        fcntl.fcntl(w,fcntl.F_SETFL,fcntl.fcntl(w,fcntl.F_GETFL)|os.O_NONBLOCK)\n\
        p=subprocess.Popen([os.environ['T'],'map','-f','raw','--output=json','many'],stdout=w)\n\
        os.close(w)\n\
        while open('/proc/%d/stat'%p.pid).read().split(') ')[1][0]=='R': pass\n\
        f=os.fdopen(r,'rb'); sys.stdout.buffer.write(f.read()); sys.exit(p.wait())\n";
    let mut python = Command::new("python3");
    let late = python
        .args(["-c", script])
        .current_dir(path)
        .env("T", TOOL)
        .output();
    let Ok(late) = late else {
        eprintln!("skipped: no python3");
        return;
    };
    let late = Outcome::from(late);
    assert_eq!(late.status, Some(0), "{late:?}");
    assert!(late.stdout == all.stdout, "{} bytes", late.stdout.len());
}

#[test]
fn a_file_that_may_not_grow_is_an_error_of_every_verb_that_writes() {
    if !reference_is_there() {
        return;
    }
    for verb in [
        "create -q -f raw -o preallocation=full n 10M",
        "create -q -f raw n 10M",
        "create -q -f qcow2 -o preallocation=full n 10M",
        "create -q -f qcow2 -o preallocation=falloc n 10M",
        "convert -f raw -O raw s.raw n",
        "convert -f raw -O qcow2 s.raw n",
        "convert -c -f raw -O qcow2 r.raw n",
        "convert -n -f raw -O qcow2 s.raw empty",
        "dd -f raw if=s.raw of=n bs=1M",
        "resize -f raw s.raw 10M",
        "resize --preallocation=full empty 10M",
        "commit over",
        "rebase -f qcow2 -b '' over2",
        "bench -f qcow2 -w -c 32 -s 64k empty",
    ] {
        let folder = folder();
        let made = shell(
            folder.path(),
            "head -c 1M /dev/urandom >r.raw; $T create -q -f qcow2 empty 8M; $T create -q -f qcow2 -b q -F qcow2 over2; \
             qemu-io -c 'write 0 1M' over >/dev/null; $T create -q -f qcow2 thin 1M; $T rebase -u -f qcow2 -b thin -F qcow2 over",
        );
        assert_eq!(made.status, Some(0), "{made:?}");
        // 512 KiB.
        let failed = shell(folder.path(), &format!("ulimit -f 1024; $T {verb}"));
        assert_eq!(failed.status, Some(1), "{verb}: {failed:?}");
        let line = failed.stderr.lines().next().unwrap_or_default();
        assert!(
            line.starts_with("image-tool: ") && line.contains("oo large"),
            "{verb}: {failed:?}"
        );
        assert!(!folder.path().join("n").exists(), "{verb}");
    }
}

#[test]
fn with_few_descriptors_there_is_an_answer_or_one_clear_error() {
    let folder = folder();
    for verb in [
        "info over",
        "map over",
        "check over",
        "convert -O qcow2 over o",
        "convert -O raw q o",
        "dd if=over of=o bs=64k",
        "compare over s.raw",
        "measure -O qcow2 over",
        "create -q -f qcow2 -b q -F qcow2 o",
        "create -q -f qcow2 -o data_file=data o 1M",
        "rebase -b s.raw -F raw over2",
        "commit over2",
        "snapshot -c one q2",
        "resize q2 2M",
        "bitmap --add q2 b",
        "bench -c 1 over",
    ] {
        for limit in 3..16 {
            let copies = "cp q q2; cp over over2";
            let line = format!("{copies}; ulimit -n {limit}; exec $T {verb}");
            let done = shell(folder.path(), &line);
            let is_clear = done.stderr.contains("Too many open files");
            match done.status {
                Some(0) => {}
                // The dynamic linker's own.
                Some(127) if limit == 3 => {}
                status => {
                    let failed = if verb.starts_with("compare") { 2 } else { 1 };
                    let line_is_one = done.stderr.lines().count() == 1;
                    assert!(
                        status == Some(failed) && is_clear && line_is_one,
                        "{line}: {done:?}"
                    );
                }
            }
        }
        let line = format!("cp q q2; cp over over2; ulimit -n 20; exec $T {verb}");
        let done = shell(folder.path(), &line);
        assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""), "{verb}");
    }
}

#[test]
fn with_little_memory_and_no_more_threads_the_work_is_done() {
    let folder = folder();
    let path = folder.path();
    for limit in ["ulimit -v 60000", "ulimit -v 30000"] {
        let done = shell(path, &format!("{limit}; exec $T convert -O raw over o"));
        assert_eq!(
            (done.status, done.stderr.as_str()),
            (Some(0), ""),
            "{limit}"
        );
        assert!(same(path, "s.raw", "o"));
    }
    if !rustix::process::geteuid().is_root() {
        return;
    }
    assert_eq!(
        shell(path, "chmod 777 . && chmod 644 s.raw q").status,
        Some(0)
    );
    // The limit counts the threads of a user, who has none: the tool, and the thread that hears signals.
    let line = "exec setpriv --reuid=54321 --regid=54321 --clear-groups prlimit --nproc=2 $T convert -O raw q p";
    let done = shell(path, line);
    assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""), "{line}");
    assert!(same(path, "s.raw", "p"));
}
