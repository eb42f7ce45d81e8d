//! What may be opened because an image names it: files beside it, and those that `--allow-path` allows; by their type,
//! and at once.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use peer::{Backend, Guest, program};
use qcow::{CreateOptions, Format};
use rustix::fs::{CWD, FileType, Mode, mknodat};

const SIZE: u64 = 1 << 20;

/// Two folders beside each other, each with a raw file: `images` with 1 in each byte, `else` with 2.
fn folders() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, byte) in [("images", 1), ("else", 2)] {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.join("inner")).unwrap();
        for file in ["base.raw", "inner/base.raw"] {
            std::fs::write(path.join(file), vec![byte; SIZE as usize]).unwrap();
        }
    }
    folder
}

/// An image in `folder` whose backing file or data file is then called `name`.
fn naming(folder: &Path, name: &str, as_data: bool) -> std::path::PathBuf {
    let image = folder.join("images/disk.qcow2");
    let _ = std::fs::remove_file(&image);
    let mut options = CreateOptions::new(Format::Qcow2, SIZE);
    // A file whose name is as long, for `create` to find.
    let beside = "x".repeat(name.len());
    let place = match as_data {
        // Such a name is relative to the working directory.
        true => Path::new(&beside).to_owned(),
        false => folder.join("images").join(&beside),
    };
    std::fs::write(&place, vec![0; SIZE as usize]).unwrap();
    match as_data {
        true => options.data_file = Some(beside.clone()),
        false => {
            options.backing_file = Some(beside.clone());
            options.backing_format = Some(Format::Raw);
        }
    }
    qcow::create(&image, &options).unwrap();
    std::fs::remove_file(place).unwrap();
    let mut bytes = std::fs::read(&image).unwrap();
    let at = bytes
        .windows(beside.len())
        .position(|window| window == beside.as_bytes())
        .unwrap();
    bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
    std::fs::write(&image, bytes).unwrap();
    image
}

/// What the program says about `image` when it refuses it, which it does at once.
fn refused(image: &Path, more: &[&str]) -> String {
    let start = Instant::now();
    let child = program()
        .arg("--socket-path")
        .arg(image.with_extension("sock"))
        .arg("--blk-file")
        .arg(image)
        .args(["--format", "qcow2"])
        .args(more)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = child;
    let status = peer::wait(&mut child);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(start.elapsed() < Duration::from_secs(10), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

/// The first byte of the disk.
fn first_byte(image: &Path, more: &[&str]) -> u8 {
    let backend = Backend::start(image, "qcow2", more);
    let mut guest = Guest::connect(&backend, 1);
    guest.read(0, 512)[0]
}

#[test]
fn files_beside_the_image_are_opened_and_others_only_where_that_is_allowed() {
    let folder = folders();
    let path = folder.path();
    let elsewhere = path.join("else");
    let allow = ["--allow-path", elsewhere.to_str().unwrap()];
    symlink("../else/base.raw", path.join("images/link.raw")).unwrap();
    symlink("../else", path.join("images/linked")).unwrap();
    symlink("base.raw", path.join("images/near.raw")).unwrap();
    let absolute = |name: &str| path.join(name).to_str().unwrap().to_owned();

    for as_data in [false, true] {
        // The name of a data file is relative to the working directory, which is none of these.
        let name = |name: &str| match as_data {
            true => absolute(&format!("images/{name}")),
            false => name.to_owned(),
        };
        for name in [
            name("base.raw"),
            name("inner/base.raw"),
            name("../images/base.raw"),
            name("near.raw"),
            absolute("images/base.raw"),
        ] {
            let image = naming(path, &name, as_data);
            let expected = if as_data { 0 } else { 1 };
            assert_eq!(first_byte(&image, &[]), expected, "{name}");
        }
        for name in [
            name("../else/base.raw"),
            name("inner/../../else/base.raw"),
            name("link.raw"),
            name("linked/base.raw"),
            absolute("else/base.raw"),
            absolute("else/inner/base.raw"),
        ] {
            let image = naming(path, &name, as_data);
            let said = refused(&image, &[]);
            assert!(said.contains("--allow-path"), "{name}: {said}");
            let expected = if as_data { 0 } else { 2 };
            assert_eq!(first_byte(&image, &allow), expected, "{name}");
            let said = refused(&image, &["--allow-path", "/usr", "--allow-path", "/var"]);
            assert!(said.contains("/usr"), "{said}");
        }
    }
    let said = refused(
        &naming(path, "base.raw", false),
        &["--allow-path", "/nowhere"],
    );
    assert!(said.contains("/nowhere"), "{said}");
    // Nothing was written to.
    let content = std::fs::read(path.join("else/base.raw")).unwrap();
    assert_eq!(content, vec![2; SIZE as usize]);
}

#[test]
fn only_regular_files_and_block_devices_are_opened_and_nothing_is_waited_for() {
    let folder = folders();
    let path = folder.path();
    let mode = Mode::RUSR | Mode::WUSR;
    let fifo = path.join("images/fifo");
    mknodat(CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path.join("images/sock")).unwrap();
    symlink("fifo", path.join("images/link")).unwrap();
    symlink("loop", path.join("images/loop")).unwrap();
    let everywhere = ["--allow-path", "/"];
    for as_data in [false, true] {
        let inside = ["fifo", "link", "sock", "inner", "loop", "gone"].map(|name| match as_data {
            true => path.join("images").join(name).to_str().unwrap().to_owned(),
            false => name.to_owned(),
        });
        let outside = [
            "/dev/zero",
            "/dev/tty",
            "/dev/ptmx",
            "/proc/self/fd/0",
            "/proc/self/mem",
            "/proc/self/status",
            "/proc/kmsg",
            "/sys/kernel/uevent_seqnum",
        ];
        for name in inside.iter().map(String::as_str).chain(outside) {
            let image = naming(path, name, as_data);
            // Some of them have an impossible length, or are no images; opening one never waits.
            let said = refused(&image, &everywhere);
            assert!(said.starts_with("error: "), "{name}: {said}");
        }
    }
}

/// Links of links in folders of their own, and, for root, an image that belongs to somebody else.
#[test]
fn an_image_is_opened_whatever_leads_there_and_whoever_owns_it() {
    let folder = folders();
    for name in ["first", "second"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    let image = folder.path().join("images/disk.qcow2");
    qcow::create(&image, &CreateOptions::new(Format::Qcow2, SIZE)).unwrap();
    symlink("../second/link", folder.path().join("first/link")).unwrap();
    symlink("../images/disk.qcow2", folder.path().join("second/link")).unwrap();
    if rustix::process::geteuid().is_root() {
        rustix::fs::chmod(&image, Mode::RUSR | Mode::WUSR).unwrap();
        std::os::unix::fs::chown(&image, Some(65534), Some(65534)).unwrap();
    }
    for path in ["images/disk.qcow2", "second/link", "first/link"] {
        let backend = Backend::start(&folder.path().join(path), "qcow2", &[]);
        drop(Guest::connect(&backend, 1));
        let (status, said) = backend.end();
        assert_eq!((status.code(), said.as_str()), (Some(0), ""), "{path}");
    }
}
