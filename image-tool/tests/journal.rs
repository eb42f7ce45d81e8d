//! Images that wait for a journal: of a process that served them and was killed. What it was asked to write is there,
//! or nothing is said to be whole.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::path::Path;
use std::process::{Command, Output};

use qcow::{CreateOptions, Format, Image, Journal, Locking, OpenOptions};

const SIZE: u64 = 1 << 20;
const JOURNAL: &str = "disk.qcow2.bulkhead-journal";

/// A folder with `disk.qcow2`, whose first 64 KiB only its journal leads to, and `raw`, what is on it.
fn killed() -> tempfile::TempDir {
    killed_with(|_| {})
}

/// The same, after something else was done with the image.
fn killed_with(end: impl Fn(&Image)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    qcow::create(&path, &CreateOptions::new(Format::Qcow2, SIZE)).unwrap();
    let options = OpenOptions::new(Format::Qcow2)
        .writable(true)
        .journal(Journal::Keep)
        // Those of a process that is killed go with it.
        .locking(Locking::Off);
    let image = Image::open(&path, &options).unwrap();
    image.write_at(0, &[7; 64 << 10]).unwrap();
    image.secure().unwrap();
    end(&image);
    std::mem::forget(image);
    let mut raw = vec![0; SIZE as usize];
    raw[..64 << 10].fill(7);
    std::fs::write(folder.path().join("raw"), raw).unwrap();
    folder
}

fn tool(folder: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_image-tool"))
        .args(line.split(' '))
        .current_dir(folder)
        .output()
        .unwrap()
}

/// Its status, and all that it said.
fn said(output: &Output) -> (Option<i32>, String) {
    let all = [&output.stdout[..], &output.stderr].concat();
    (output.status.code(), String::from_utf8(all).unwrap())
}

/// Ways to read the image, which find that it is what `raw` is.
const READERS: [&str; 4] = [
    "convert -O raw disk.qcow2 copy",
    "compare disk.qcow2 raw",
    "map disk.qcow2",
    "convert -f qcow2 -O qcow2 disk.qcow2 other.qcow2",
];

#[test]
fn readers_and_writers_find_what_is_in_the_journal_whatever_the_image_is_called() {
    let folder = killed();
    let path = folder.path();
    std::fs::rename(path.join("disk.qcow2"), path.join("new.qcow2")).unwrap();
    for line in READERS {
        let line = line.replace("disk.qcow2", "new.qcow2");
        let (status, words) = said(&tool(path, &line));
        assert_eq!(status, Some(0), "{line}: {words}");
    }
    assert!(std::fs::read(path.join("copy")).unwrap() == std::fs::read(path.join("raw")).unwrap());
    assert_eq!(said(&tool(path, "compare other.qcow2 raw")).0, Some(0));
    assert!(path.join(JOURNAL).exists());

    let (status, words) = said(&tool(path, "resize new.qcow2 2M"));
    assert_eq!(status, Some(0), "{words}");
    assert!(!path.join(JOURNAL).exists());
    let (status, words) = said(&tool(path, "check new.qcow2"));
    assert_eq!(status, Some(0), "{words}");
}

#[test]
fn without_its_journal_nothing_but_a_repair_goes_on() {
    let folder = killed();
    let path = folder.path();
    std::fs::rename(path.join(JOURNAL), path.join("elsewhere")).unwrap();
    let before = std::fs::read(path.join("disk.qcow2")).unwrap();
    let overlay = "create -u -f qcow2 -b disk.qcow2 -F qcow2 overlay.qcow2 1M";
    let (status, words) = said(&tool(path, overlay));
    assert_eq!(status, Some(0), "{words}");
    let others = [
        "resize disk.qcow2 2M",
        "snapshot -c s disk.qcow2",
        "bitmap --add disk.qcow2 b",
        "rebase -u -b overlay.qcow2 -F qcow2 disk.qcow2",
        "amend -o lazy_refcounts=on disk.qcow2",
        "commit overlay.qcow2",
        "compare overlay.qcow2 raw",
        "create -f qcow2 -b disk.qcow2 -F qcow2 other.qcow2",
        "dd if=disk.qcow2 of=copy",
        "measure -O raw disk.qcow2",
    ];
    for line in READERS.iter().chain(&others) {
        let (status, words) = said(&tool(path, line));
        assert!(status.is_some_and(|status| status > 0), "{line}: {words}");
        for word in [JOURNAL, "check -r all"] {
            assert!(words.contains(word), "{line}: {words}");
        }
    }
    assert_eq!(said(&tool(path, "info disk.qcow2")).0, Some(0));
    for line in ["check disk.qcow2", "check -r leaks disk.qcow2"] {
        let (status, words) = said(&tool(path, line));
        assert_eq!(status, Some(2), "{line}: {words}");
        assert!(words.contains(JOURNAL), "{line}: {words}");
    }
    assert!(std::fs::read(path.join("disk.qcow2")).unwrap() == before);

    let (status, words) = said(&tool(path, "check -r all disk.qcow2"));
    assert_eq!(status, Some(0), "{words}");
    assert!(words.contains(JOURNAL), "{words}");
    for line in ["check disk.qcow2", "convert -O raw disk.qcow2 copy"] {
        let (status, words) = said(&tool(path, line));
        assert_eq!(
            (status, words.contains(JOURNAL)),
            (Some(0), false),
            "{line}: {words}"
        );
    }
}

#[test]
fn a_repair_that_cannot_write_gives_nothing_up() {
    let folder = killed();
    let path = folder.path();
    // The tables that its journal has go beyond that.
    let limited = |line: &str| {
        Command::new("sh")
            .args(["-c", "ulimit -f 200; exec \"$@\"", "sh"])
            .arg(env!("CARGO_BIN_EXE_image-tool"))
            .args(line.split(' '))
            .current_dir(path)
            .output()
            .unwrap()
    };
    let (status, words) = said(&limited("check -r all disk.qcow2"));
    assert!(status.is_some_and(|status| status > 0), "{words}");
    assert!(path.join(JOURNAL).exists());
    let (status, words) = said(&tool(path, "compare disk.qcow2 raw"));
    assert_eq!(status, Some(0), "{words}");
    assert_eq!(said(&tool(path, "check -r all disk.qcow2")).0, Some(0));
    let (status, words) = said(&tool(path, "compare disk.qcow2 raw"));
    assert_eq!(status, Some(0), "{words}");
}

#[test]
fn a_repair_that_is_killed_while_it_removes_the_journal_leaves_an_image_that_waits_for_none() {
    for call in ["ftruncate", "unlinkat"] {
        for repair in ["leaks", "all"] {
            let folder = killed_with(|image| image.flush().unwrap());
            let path = folder.path();
            let line = format!(
                "-f -qq -o log -e trace={call} -e inject={call}:signal=SIGKILL:when=1 {} check -r {repair} disk.qcow2",
                env!("CARGO_BIN_EXE_image-tool")
            );
            let killed = Command::new("strace")
                .args(line.split(' '))
                .current_dir(path)
                .output()
                .unwrap();
            assert!(!killed.status.success(), "{line}: {killed:?}");
            for line in ["check disk.qcow2", "compare disk.qcow2 raw"] {
                let (status, words) = said(&tool(path, line));
                assert_eq!(status, Some(0), "{call}, {repair}: {line}: {words}");
            }
        }
    }
}
