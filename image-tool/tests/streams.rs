//! Raw images to what takes bytes one after the other: pipes, FIFOs, sockets, character devices. And what cannot be a
//! pipe.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use pair::{Outcome, TOOL, shell};
use tempfile::TempDir;

/// A folder with an overlay of some MiB, with holes at its beginning, in its middle and at its end, and `flat`, its
/// disk.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut data = vec![0; 9 << 20];
    for at in [1 << 20, 5 << 20, (7 << 20) + 512] {
        for (index, byte) in data[at..at + (1 << 20)].iter_mut().enumerate() {
            *byte = (index % 251) as u8 + 1;
        }
    }
    fs::write(folder.path().join("flat"), data).unwrap();
    let line =
        "$T convert -c -f raw -O qcow2 flat base && $T create -q -f qcow2 -b base -F qcow2 q";
    assert_eq!(shell(folder.path(), line).status, Some(0));
    folder
}

#[test]
fn a_raw_image_goes_through_a_pipe() {
    let folder = folder();
    for verb in [
        "convert -O raw q",
        "convert -S 0 -O raw q",
        "convert -S 1M -m 1 -O raw q",
        "convert -W -O raw q",
        "convert -t none -r 100M -O raw q",
        "convert -f raw flat",
        "dd bs=1M if=q",
    ] {
        for name in ["/dev/stdout", "/proc/self/fd/1", "link"] {
            let target = match verb.starts_with("dd") {
                true => format!("of={name}"),
                false => name.to_owned(),
            };
            let line = format!(
                "ln -sf /dev/stdout link; {{ $T {verb} {target}; echo $? >status; }} | cmp - flat && exit $(cat status)"
            );
            let done = shell(folder.path(), &line);
            assert_eq!(
                done,
                Outcome {
                    status: Some(0),
                    stdout: String::new(),
                    stderr: String::new()
                },
                "{line}"
            );
        }
    }
    let names = shell(folder.path(), "ls");
    assert_eq!(names.stdout, "base\nflat\nlink\nq\nstatus\n");
}

#[test]
fn what_is_shorter_than_its_last_sector_is_filled_up() {
    let folder = folder();
    let line = "head -c 1500 flat >short; $T convert -f raw -O raw short /dev/stdout | wc -c; $T dd -f raw if=flat bs=100 count=7 of=/dev/stdout | wc -c";
    let done = shell(folder.path(), line);
    let lengths: Vec<_> = done.stdout.split_whitespace().collect();
    assert_eq!(lengths, ["1536", "1024"], "{done:?}");
}

#[test]
fn a_fifo_is_waited_for_and_filled() {
    let folder = folder();
    let line = "mkfifo f; $T convert -O raw q f & \
        until grep -q SigBlk:.*[1-9a-f] /proc/$!/status; do :; done; cmp f flat && wait $!";
    let done = shell(folder.path(), line);
    assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_fifo_that_nobody_reads_is_given_up_when_a_signal_says_so() {
    let folder = folder();
    let line = "mkfifo f; $T convert -O raw q f & \
        until grep -q SigBlk:.*[1-9a-f] /proc/$!/status; do :; done; kill $!; wait $!";
    let done = shell(folder.path(), line);
    assert_eq!(done.status, Some(128 + 15), "{done:?}");
}

#[test]
fn a_socket_is_filled() {
    let folder = folder();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut child = Command::new(TOOL)
        .args(["convert", "-O", "raw", "q", "/dev/stdout"])
        .current_dir(folder.path())
        .stdout(OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    let mut got = Vec::new();
    ours.read_to_end(&mut got).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(got == fs::read(folder.path().join("flat")).unwrap());
}

#[test]
fn a_socket_that_does_not_wait_is_filled() {
    let folder = folder();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut child = Command::new(TOOL)
        .args(["convert", "-O", "raw", "q", "/dev/stdout"])
        .current_dir(folder.path())
        .stdout(OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    let mut got = vec![0; 1000];
    ours.read_exact(&mut got).unwrap();
    ours.read_to_end(&mut got).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(got == fs::read(folder.path().join("flat")).unwrap());
}

#[test]
fn a_character_device_is_written() {
    let folder = folder();
    for verb in [
        "convert -O raw q /dev/null",
        "dd if=q of=/dev/null",
        "convert -O raw q /dev/stdout >/dev/null",
    ] {
        let done = shell(folder.path(), &format!("$T {verb}"));
        assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""), "{verb}");
    }
    for verb in [
        "convert -O raw q /dev/full",
        "dd if=q of=/dev/full",
        "convert -O raw q /dev/stdout >/dev/full",
    ] {
        let done = shell(folder.path(), &format!("$T {verb}"));
        assert_eq!(done.status, Some(1), "{verb}: {done:?}");
        assert!(
            done.stderr.contains("No space left on device"),
            "{verb}: {done:?}"
        );
    }
    // All of it zeroes, which are written at the very end.
    let done = shell(
        folder.path(),
        "$T create -q -f qcow2 z 1M; $T convert -O raw z /dev/full",
    );
    assert_eq!(done.status, Some(1), "{done:?}");
    assert_eq!(
        done.stderr.lines().next(),
        Some("image-tool: Could not write '/dev/full': No space left on device")
    );
}

#[test]
fn a_reader_that_goes_away_is_an_error() {
    let folder = folder();
    for verb in ["convert -O raw q /dev/stdout", "dd if=q of=/dev/stdout"] {
        let line = format!(
            "{{ $T {verb}; echo $? >status; }} | head -c 1000 >/dev/null; exit $(cat status)"
        );
        let done = shell(folder.path(), &line);
        assert_eq!(done.status, Some(1), "{verb}: {done:?}");
        assert!(done.stderr.contains("Broken pipe"), "{verb}: {done:?}");
        assert!(!done.stderr.contains("/proc"), "{verb}: {done:?}");
    }
}

#[test]
fn what_needs_its_place_says_that_it_cannot_be_a_pipe() {
    let folder = folder();
    for verb in [
        "convert -O qcow2 q /dev/stdout",
        "convert -c -O qcow2 q /dev/stdout",
        "dd -O qcow2 if=q of=/dev/stdout",
        "create -q -f raw /dev/stdout 1M",
        "create -q -f qcow2 /dev/stdout 1M",
        "convert -n -O raw q /dev/stdout",
        "convert -n -O qcow2 q /dev/stdout",
        "convert -p -O raw q /dev/stdout",
        "resize -f raw /dev/stdout 1M",
        "create -q -f raw f 1M",
        "convert -O qcow2 q f",
        "convert -O raw q s",
        "convert -O qcow2 q s",
    ] {
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let line = format!(
            "[ -e f ] || mkfifo f; {{ $T {verb}; echo $? >status; }} | cat; exit $(cat status)"
        );
        let refused = shell(folder.path(), &line);
        drop(listener);
        fs::remove_file(folder.path().join("s")).unwrap();
        assert_eq!(
            (refused.status, refused.stdout.as_str()),
            (Some(1), ""),
            "{verb}: {refused:?}"
        );
        assert_eq!(refused.stderr.lines().count(), 1, "{verb}: {refused:?}");
        assert!(
            refused.stderr.starts_with("image-tool: "),
            "{verb}: {refused:?}"
        );
    }
}

#[test]
fn no_image_is_read_from_a_pipe() {
    let folder = folder();
    for verb in [
        "convert -O raw /dev/stdin o",
        "convert -f qcow2 -O raw /dev/stdin o",
        "info /dev/stdin",
        "check /dev/stdin",
        "map /dev/stdin",
        "compare /dev/stdin q",
        "dd if=/dev/stdin of=o",
        "measure -O raw /dev/stdin",
    ] {
        let refused = shell(folder.path(), &format!("cat q | $T {verb}"));
        assert!(refused.status != Some(0), "{verb}: {refused:?}");
        assert!(
            refused
                .stderr
                .contains("'file' driver requires '/dev/stdin' to be a regular file"),
            "{verb}: {refused:?}"
        );
    }
    assert!(!folder.path().join("o").exists());
}

#[test]
fn a_pipe_that_is_full_does_not_make_it_deaf() {
    let folder = folder();
    let mut child = Command::new(TOOL)
        .args(["convert", "-O", "raw", "q", "/dev/stdout"])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut begin = [0; 4096];
    out.read_exact(&mut begin).unwrap();
    let killed = Command::new("kill").arg(child.id().to_string()).status();
    assert!(killed.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}
