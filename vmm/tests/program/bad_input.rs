//! Bad input is reported in one line, and nothing is left behind.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread;

use crate::elf::{forever, kernel};
use crate::{Monitor, kvm_is_usable};

/// Arguments, exit status, what the line has to mention.
type Case<'a> = (&'a [&'a str], i32, &'a [&'a str]);

const CASES: &[Case<'_>] = &[
    (&[], 2, &["--kernel"]),
    (&["--kernel", "{}/missing"], 1, &["missing", "No such file"]),
    (&["--kernel", "{}"], 1, &["not a file"]),
    (&["--kernel", "{}/empty"], 1, &["empty is empty"]),
    (&["--kernel", "{}/junk"], 1, &["junk is not a kernel"]),
    (&["--kernel", "{}/cut"], 1, &["cut is truncated"]),
    (&["--kernel", "/proc/self/exe"], 1, &["is not a kernel"]),
    (&["--initramfs", "{}/missing"], 1, &["initramfs", "missing"]),
    (&["--initramfs", "{}/empty"], 1, &["initramfs", "is empty"]),
    (&["--initramfs", "{}/large"], 1, &["large does not fit"]),
    (&["--cmdline", "LONG"], 1, &["--cmdline", "2047"]),
    (&["--memory", "size=0"], 2, &["--memory"]),
    (
        &["--memory", "size=512"],
        2,
        &["--memory: size: 512 bytes are too few", "write 512M"],
    ),
    (&["--memory", "512"], 2, &["--memory", "write size=512M"]),
    (&["--memory", "1G"], 2, &["--memory", "write size=1G"]),
    (&["--memory", "size=16777217"], 2, &["--memory", "multiple"]),
    (&["--memory", "size=30T"], 1, &["--memory", "the host has"]),
    (&["--memory", "size=big"], 2, &["--memory", "size"]),
    (
        &["--memory", "size=1G,hugpages=on"],
        2,
        &["hugpages", "hugepages"],
    ),
    (&["--cpus", "boot=0"], 2, &["--cpus", "255"]),
    (&["--cpus", "boot=256"], 2, &["--cpus", "255"]),
    (&["--cpus", "boot=2,max=1"], 2, &["--cpus", "max"]),
    (&["--disk", "path={}/empty"], 2, &["--disk", "path"]),
    (
        &["--disk", "socket={}/empty"],
        2,
        &["--disk", "vhost_user=on"],
    ),
    (
        &["--disk", "vhost_user=on,socket={}/missing"],
        1,
        &["--disk", "missing"],
    ),
    (
        &["--disk", "vhost_user=on,socket={}/empty"],
        1,
        &["--disk", "not a socket"],
    ),
    (
        &["--disk", "vhost_user=on,socket={}/LONG"],
        1,
        &["--disk", "too long"],
    ),
    (
        &["--disk", "vhost_user=on,socket={}/http"],
        1,
        &["--disk", "not vhost-user"],
    ),
    (
        &["--net", "vhost_user=on,socket=/s,mac=1"],
        2,
        &["--net", "MAC"],
    ),
    (
        &["--net", "vhost_user=on,socket=/s,num_queues=0"],
        2,
        &["--net", "num_queues"],
    ),
    (
        &["--vhost-user", "type=disk,socket=/s"],
        2,
        &["--vhost-user", "disk"],
    ),
    (
        &["--event-monitor", "{}/events"],
        2,
        &["--event-monitor", "key=value"],
    ),
    (
        &["--event-monitor", "path={}/missing/events"],
        1,
        &["--event-monitor", "missing/events", "No such file"],
    ),
    (
        &["--event-monitor", "path={}"],
        1,
        &["--event-monitor", "cannot write", "directory"],
    ),
    (&["--serial", "pty"], 2, &["--serial", "pty"]),
    (
        &["--serial", "file={}/missing/log"],
        1,
        &["--serial", "missing"],
    ),
    (
        &["--serial", "socket={}/empty"],
        1,
        &["--serial", "not a socket"],
    ),
    (
        &["--api-socket", "path={}/empty"],
        1,
        &["--api-socket", "not a socket"],
    ),
    (&["--nonsense"], 2, &["--nonsense"]),
];

#[test]
fn one_line_names_what_is_wrong_and_nothing_is_left_behind() {
    if !kvm_is_usable() {
        return;
    }
    for (arguments, status, words) in CASES {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes);
        let good = kernel(&forever());
        write("kernel", &good).unwrap();
        write("cut", &good[..good.len() - 1]).unwrap();
        write("junk", &[0x5a; 4096]).unwrap();
        write("empty", b"").unwrap();
        write("large", &vec![1; 17 << 20]).unwrap();
        let http = UnixListener::bind(folder.path().join("http")).unwrap();
        // Ends with the test's process, if nobody connects.
        thread::spawn(move || {
            let (mut client, _) = http.accept().unwrap();
            let _ = client.read(&mut [0; 64]);
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        });
        let long = "l".repeat(3000);
        let mut all: Vec<_> = arguments
            .iter()
            .map(|word| word.replace("LONG", &long))
            .collect();
        if arguments.first().is_some_and(|first| *first != "--kernel") {
            all.extend(["--kernel", "{}/kernel"].map(str::to_owned));
            if !arguments.contains(&"--memory") {
                all.extend(["--memory", "size=16M"].map(str::to_owned));
            }
        }
        let all: Vec<_> = all.iter().map(String::as_str).collect();

        let (ended, errors, left) = Monitor::start_in(folder, &all).end();

        assert_eq!(ended.code(), Some(*status), "{arguments:?}: {errors}");
        let lines: Vec<_> = errors.lines().collect();
        assert!(
            matches!(*lines, [line] if line.starts_with("error: ")),
            "{errors}"
        );
        for word in *words {
            assert!(
                errors.contains(word),
                "{arguments:?}: {word} is not in {errors}"
            );
        }
        assert_eq!(
            left,
            ["cut", "empty", "http", "junk", "large"],
            "{arguments:?}"
        );
    }
}
