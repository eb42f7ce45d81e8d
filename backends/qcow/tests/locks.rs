//! Locks that QEMU's programs and this library both obey.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod peer;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use peer::{run, text};
use qcow::{CreateOptions, ErrorKind, Format, Image, Locking, OpenOptions};

fn disk(dir: &Path, format: Format) -> std::path::PathBuf {
    let path = dir.join("disk");
    qcow::create(&path, &CreateOptions::new(format, 1 << 20)).unwrap();
    path
}

/// qemu-io with the image open, until it is dropped.
struct QemuIo(Child);

impl QemuIo {
    fn open(path: &Path, format: Format, extra: &[&str]) -> Self {
        let mut child = Command::new("qemu-io")
            .args(["-f", format.name()])
            .args(extra)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It answers once it has opened the image.
        child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"length\n")
            .unwrap();
        let mut out = BufReader::new(child.stdout.as_mut().unwrap());
        let mut line = String::new();
        while !line.contains("MiB") {
            line.clear();
            assert!(out.read_line(&mut line).unwrap() > 0, "qemu-io ended");
        }
        Self(child)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        self.0.stdin.take();
        self.0.wait().unwrap();
    }
}

fn attempt(path: &Path, options: &OpenOptions) -> Result<Image, ErrorKind> {
    Image::open(path, options).map_err(|error| error.kind())
}

#[test]
fn what_qemu_writes_nobody_else_opens() {
    for format in [Format::Raw, Format::Qcow2] {
        let dir = tempfile::tempdir().unwrap();
        let path = disk(dir.path(), format);
        let options = OpenOptions::new(format);
        let qemu = QemuIo::open(&path, format, &[]);
        assert_eq!(
            attempt(&path, &options.clone().writable(true)).unwrap_err(),
            ErrorKind::Locked
        );
        if format == Format::Qcow2 {
            assert_eq!(attempt(&path, &options).unwrap_err(), ErrorKind::Locked);
        }
        let copied = options.clone().locking(Locking::NoWriters);
        assert_eq!(attempt(&path, &copied).unwrap_err(), ErrorKind::Locked);
        attempt(&path, &options.clone().locking(Locking::Shared)).unwrap();
        drop(qemu);
        attempt(&path, &copied).unwrap();
        attempt(&path, &options.writable(true)).unwrap();
    }
}

#[test]
fn what_we_write_qemu_does_not_open() {
    for format in [Format::Raw, Format::Qcow2] {
        let dir = tempfile::tempdir().unwrap();
        let path = disk(dir.path(), format);
        let image = attempt(&path, &OpenOptions::new(format).writable(true)).unwrap();
        let refused = |args: &[&str]| {
            let output = run("qemu-io", args);
            String::from_utf8_lossy(&output.stderr).contains("lock")
        };
        assert!(refused(&[
            "-f",
            format.name(),
            "-c",
            "write 0 512",
            text(&path)
        ]));
        if format == Format::Qcow2 {
            assert!(refused(&[
                "-r",
                "-f",
                "qcow2",
                "-c",
                "read 0 512",
                text(&path)
            ]));
        }
        assert!(!refused(&[
            "-r",
            "-U",
            "-f",
            format.name(),
            "-c",
            "read 0 512",
            text(&path)
        ]));
        drop(image);
        assert!(!refused(&[
            "-f",
            format.name(),
            "-c",
            "write 0 512",
            text(&path)
        ]));
    }
}

#[test]
fn readers_share_and_writers_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path(), Format::Qcow2);
    let options = OpenOptions::new(Format::Qcow2);
    let reader = attempt(&path, &options).unwrap();
    let other = attempt(&path, &options).unwrap();
    let qemu = QemuIo::open(&path, Format::Qcow2, &["-r"]);
    assert_eq!(
        attempt(&path, &options.clone().writable(true)).unwrap_err(),
        ErrorKind::Locked
    );
    drop((reader, other, qemu));
    let writer = attempt(&path, &options.clone().writable(true)).unwrap();
    assert_eq!(attempt(&path, &options).unwrap_err(), ErrorKind::Locked);
    assert_eq!(
        attempt(&path, &options.clone().writable(true)).unwrap_err(),
        ErrorKind::Locked
    );
    drop(writer);
    assert_eq!(
        attempt(&path, &options.writable(true).locking(Locking::Shared)).unwrap_err(),
        ErrorKind::InvalidInput
    );
}

#[test]
fn the_base_of_an_open_overlay_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let base = disk(dir.path(), Format::Raw);
    let top = dir.path().join("top");
    let options = CreateOptions {
        backing_file: Some("disk".into()),
        backing_format: Some(Format::Raw),
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    };
    qcow::create(&top, &options).unwrap();
    let chain = attempt(
        &top,
        &OpenOptions::new(Format::Qcow2)
            .writable(true)
            .follow_references(),
    )
    .unwrap();
    assert_eq!(
        attempt(&base, &OpenOptions::new(Format::Raw).writable(true)).unwrap_err(),
        ErrorKind::Locked
    );
    drop(chain);
    attempt(&base, &OpenOptions::new(Format::Raw).writable(true)).unwrap();
}

#[test]
fn a_closed_image_is_not_locked_though_a_forked_child_may_still_have_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path(), Format::Qcow2);
    let options = OpenOptions::new(Format::Qcow2).writable(true);
    let mut open = std::fs::File::options();
    let file = open.read(true).write(true).open(&path).unwrap();
    // What fork(2) gives a child: the same open file description.
    let child = file.try_clone().unwrap();
    let image = Image::open_file(file, &path, &options).unwrap();
    assert_eq!(attempt(&path, &options).unwrap_err(), ErrorKind::Locked);

    image.close().unwrap();

    attempt(&path, &options).unwrap();
    drop(child);
}
