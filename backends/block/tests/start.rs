//! The command line: what is wrong with it, or with what it names, in one line; nothing is left behind.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use qcow::{CreateOptions, Format};

const SIZE: u64 = 1 << 20;

/// Runs the program in `folder` and gives its exit status and standard error.
fn run(folder: &Path, args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_bulkhead-block"))
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said)
}

fn overlay(folder: &Path, name: &str, backing: &str, format: Format) {
    let mut options = CreateOptions::new(Format::Qcow2, SIZE);
    options.backing_file = Some(backing.to_owned());
    options.backing_format = Some(format);
    qcow::create(folder.join(name), &options).unwrap();
}

/// A folder with one image of each kind.
fn images() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let raw = CreateOptions::new(Format::Raw, SIZE);
    qcow::create(path.join("good.raw"), &raw).unwrap();
    qcow::create(
        path.join("base.qcow2"),
        &CreateOptions::new(Format::Qcow2, SIZE),
    )
    .unwrap();
    overlay(path, "orphan.qcow2", "base.qcow2", Format::Qcow2);
    std::fs::rename(path.join("orphan.qcow2"), path.join("good.qcow2")).unwrap();
    overlay(path, "orphan.qcow2", "good.raw", Format::Raw);
    std::fs::copy(path.join("orphan.qcow2"), path.join("kept.qcow2")).unwrap();
    // Two that lie on each other.
    overlay(path, "a.qcow2", "base.qcow2", Format::Qcow2);
    std::fs::copy(path.join("a.qcow2"), path.join("b.qcow2")).unwrap();
    for (image, backing) in [("a.qcow2", "b.qcow2"), ("b.qcow2", "a.qcow2")] {
        overlay_name(&path.join(image), backing);
    }
    overlay_name(&path.join("orphan.qcow2"), "gone.raw");
    std::fs::write(path.join("odd.raw"), [0; 1000]).unwrap();
    std::fs::write(path.join("file.sock"), "not a socket").unwrap();
    folder
}

/// Puts another backing file into the header, as damage or malice would.
fn overlay_name(image: &Path, backing: &str) {
    let mut bytes = std::fs::read(image).unwrap();
    let at = u64::from_be_bytes(bytes[8..16].try_into().unwrap()) as usize;
    bytes[16..20].copy_from_slice(&(backing.len() as u32).to_be_bytes());
    bytes[at..at + backing.len()].copy_from_slice(backing.as_bytes());
    std::fs::write(image, bytes).unwrap();
}

#[test]
fn what_is_wrong_is_printed_in_one_line() {
    let folder = images();
    let long = "x".repeat(120);
    let living = UnixListener::bind(folder.path().join("living.sock")).unwrap();
    let serve = ["--socket-path", "s.sock", "--blk-file"];
    let good = ["--blk-file", "good.raw", "--format", "raw"];
    let cases: &[(&[&str], i32, &str)] = &[
        // The command line.
        (&[&serve[..], &["good.raw"]].concat(), 2, "--format"),
        (&[&serve[..], &["good.qcow2"]].concat(), 2, "good.qcow2"),
        (
            &[&serve[..], &["good.raw", "--format", "vmdk"]].concat(),
            2,
            "vmdk",
        ),
        (&serve[..2], 2, "--blk-file"),
        (&good, 2, "--socket-path"),
        (&[&serve[..2], &["--fd", "3"], &good].concat(), 2, "--fd"),
        (
            &[&serve[..2], &good, &["--serial", "123456789012345678901"]].concat(),
            2,
            "--serial",
        ),
        (
            &[&serve[..2], &good, &["--num-queues", "0"]].concat(),
            2,
            "num-queues",
        ),
        (
            &[&serve[..2], &good, &["--nonsense"]].concat(),
            2,
            "--nonsense",
        ),
        // The image.
        (
            &[&serve[..], &["gone.raw", "--format", "raw"]].concat(),
            1,
            "gone.raw",
        ),
        (
            &[&serve[..], &["good.raw", "--format", "qcow2"]].concat(),
            1,
            "good.raw",
        ),
        (
            &[&serve[..], &["file.sock", "--format", "qcow2"]].concat(),
            1,
            "file.sock",
        ),
        (
            &[&serve[..], &["orphan.qcow2", "--format", "qcow2"]].concat(),
            1,
            "gone.raw",
        ),
        (
            &[&serve[..], &["a.qcow2", "--format", "qcow2"]].concat(),
            1,
            "a.qcow2",
        ),
        (
            &[&serve[..], &["odd.raw", "--format", "raw"]].concat(),
            1,
            "odd.raw",
        ),
        (&[&serve[..], &[".", "--format", "raw"]].concat(), 1, "."),
        // The socket.
        (&[&["--socket-path", &long], &good[..]].concat(), 1, "107"),
        (
            &[&["--socket-path", "no/folder/s"], &good[..]].concat(),
            1,
            "no/folder/s",
        ),
        (
            &[&["--socket-path", "file.sock"], &good[..]].concat(),
            1,
            "not a socket",
        ),
        (
            &[&["--socket-path", "living.sock"], &good[..]].concat(),
            1,
            "in use",
        ),
        (&[&["--fd", "77"], &good[..]].concat(), 1, "--fd 77"),
        (&[&["--fd", "0"], &good[..]].concat(), 1, "--fd 0"),
    ];
    for (args, status, word) in cases {
        let (code, said) = run(folder.path(), args);
        assert_eq!(code, Some(*status), "{args:?}: {said}");
        assert!(said.starts_with("error: "), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        assert!(said.contains(word), "{args:?}: {said}");
        assert!(!folder.path().join("s.sock").exists(), "{args:?}");
    }
    let kept = std::fs::read_to_string(folder.path().join("file.sock")).unwrap();
    assert_eq!(kept, "not a socket");
    drop(living);
}

#[test]
fn an_image_is_written_by_one_server_at_a_time() {
    let folder = images();
    for (name, format) in [("good.raw", "raw"), ("kept.qcow2", "qcow2")] {
        let image = folder.path().join(name);
        let _first = peer::Backend::start(&image, format, &[]);

        let args = [
            "--socket-path",
            "s.sock",
            "--blk-file",
            name,
            "--format",
            format,
        ];
        let (code, said) = run(folder.path(), &args);

        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(name) && said.contains("lock"), "{said}");
    }
}

/// Makes a folder and all that is in it an ordinary user's.
fn give_away(folder: &Path) {
    chown(folder, Some(65534), Some(65534)).unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => give_away(&path),
            false => chown(path, Some(65534), Some(65534)).unwrap(),
        }
    }
}

/// The program as an ordinary user starts it, whoever runs the test. It is copied to `folder`, which is then that
/// user's.
fn program_of_a_user(folder: &Path) -> Command {
    let program = folder.join("bulkhead-block");
    std::fs::copy(env!("CARGO_BIN_EXE_bulkhead-block"), &program).unwrap();
    let mut command = Command::new(&program);
    if rustix::process::geteuid().is_root() {
        give_away(folder);
        command.uid(65534).gid(65534);
    }
    command.current_dir(folder).stdin(Stdio::null());
    command
}

#[test]
fn an_ordinary_user_opens_only_what_the_modes_of_files_allow() {
    for (closed, mode) in [
        ("kept.qcow2", 0o444),
        ("kept.qcow2", 0),
        // The backing file.
        ("good.raw", 0),
        ("good.raw", 0o200),
    ] {
        let folder = images();
        let mut program = program_of_a_user(folder.path());
        let path = folder.path().join(closed);
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();

        let mut child = program
            .args(["--socket-path", "s.sock", "--blk-file", "kept.qcow2"])
            .args(["--format", "qcow2"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();

        let status = peer::wait(&mut child);
        let said = bulkhead_test_frontend::program::said(&mut child);
        let what = format!("{closed}, {mode:o}: {said}");
        assert_eq!(status.code(), Some(1), "{what}");
        assert!(
            said.contains("ermission denied") && said.contains(closed),
            "{what}"
        );
        assert_eq!(said.lines().count(), 1, "{what}");
        let journal = folder.path().join("kept.qcow2.bulkhead-journal");
        assert!(!journal.exists(), "{what}");
    }
}

#[test]
fn no_journal_is_made_in_a_folder_that_its_user_cannot_write() {
    let folder = images();
    let images = folder.path().join("images");
    std::fs::create_dir(&images).unwrap();
    let image = images.join("disk.qcow2");
    qcow::create(&image, &CreateOptions::new(Format::Qcow2, SIZE)).unwrap();
    let mut program = program_of_a_user(folder.path());
    std::fs::set_permissions(&images, Permissions::from_mode(0o555)).unwrap();

    let count = || std::fs::read_dir(&images).unwrap().count();

    program
        .args(["--socket-path", "s.sock", "--blk-file", "images/disk.qcow2"])
        .args(["--format", "qcow2"])
        .stderr(Stdio::piped());
    let mut child = bulkhead_test_frontend::program::start(&mut program, folder.path());
    let mut guest = peer::Guest::connect_to(&folder.path().join("s.sock"), 1);
    guest.start();
    guest.write(0, &[7; 512]);
    assert_eq!(guest.read(0, 512), [7; 512]);
    assert_eq!(count(), 1);
    drop(guest);

    assert!(peer::wait(&mut child).success());
    assert_eq!(count(), 1);
}

#[test]
fn capabilities_are_printed_and_nothing_else_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bulkhead-block"))
        .args(["--print-capabilities", "--socket-path", "s.sock"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success());
    let said: String = String::from_utf8(output.stdout)
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(
        said,
        r#"{"features":["read-only","blk-file"],"type":"block"}"#
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
