//! Files as they lie on the host: sizes that are no whole sectors, symbolic links, folders of others, sources that are
//! targets, against qemu-img.

#![allow(clippy::disallowed_macros, reason = "a test prints why it was skipped")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::process::Command;

use pair::{Pair, must, reference_is_there};

#[test]
fn a_raw_file_that_ends_within_a_sector_is_a_disk_of_whole_ones() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[&["sh", "-c", "printf %1500s x > a; printf %1500s y > b"]]);
    let same_length = |arguments: &[&str]| {
        pair.same(arguments);
        let length = |side: std::path::PathBuf| fs::metadata(side.join("a")).unwrap().len();
        assert_eq!(length(pair.ours()), length(pair.theirs()), "{arguments:?}");
    };
    same_length(&["convert", "-n", "-f", "raw", "-O", "raw", "b", "a"]);
    same_length(&["resize", "-f", "raw", "--shrink", "a", "1500"]);
    same_length(&["resize", "-f", "raw", "a", "+1M"]);
    same_length(&["resize", "-f", "raw", "a", "1001"]);
    same_length(&["resize", "-f", "raw", "--shrink", "a", "1001"]);
    same_length(&["resize", "-f", "raw", "--shrink", "a", "--", "-100"]);
    pair.same_image("a", "raw");
}

#[test]
fn a_link_to_a_file_that_is_not_there_stays_a_link() {
    if !reference_is_there() {
        return;
    }
    for arguments in [
        vec!["convert", "-O", "raw", "source", "first"],
        vec!["dd", "if=source", "of=first"],
        vec!["create", "-q", "-f", "raw", "first", "1M"],
    ] {
        let pair = Pair::new();
        pair.prepare(&[
            &["mkdir", "folder"],
            &["truncate", "-s", "1M", "source"],
            &["ln", "-s", "folder/second", "first"],
            &["ln", "-s", "../target", "folder/second"],
        ]);
        pair.same(&arguments);
        pair.same_image("target", "raw");
        let link = fs::symlink_metadata(pair.ours().join("first")).unwrap();
        assert!(link.is_symlink(), "{arguments:?}");
    }
}

#[test]
fn what_can_be_no_name_is_refused_before_the_work() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&["truncate -s 1M source"]);
    let long = "n".repeat(256);
    for name in ["", "file:", "folder/", "source/file", &long] {
        for arguments in [
            vec!["convert", "source", name],
            vec!["convert", "-O", "qcow2", "-c", "source", name],
            vec!["dd", "if=source", &format!("of={name}")],
            vec!["create", "-f", "qcow2", name, "1M"],
        ] {
            pair.same(&arguments);
        }
    }
}

#[test]
fn a_link_to_itself_is_refused() {
    let pair = Pair::new();
    symlink("b", pair.ours().join("a")).unwrap();
    symlink("a", pair.ours().join("b")).unwrap();
    let made = pair.run_ours(&["create", "-f", "raw", "a", "1M"]);
    assert_eq!(made.status, Some(1), "{made:?}");
}

#[test]
fn root_writes_into_the_folders_of_others() {
    let pair = Pair::new();
    let folder = pair.ours().join("folder");
    fs::create_dir(&folder).unwrap();
    let is_root = fs::metadata(&folder).unwrap().uid() == 0;
    if !is_root {
        eprintln!("skipped: only root can");
        return;
    }
    const SOMEBODY: u32 = 12345;
    chown(&folder, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    fs::write(pair.ours().join("source"), vec![7; 4096]).unwrap();
    // In a folder like /tmp, too, where only the owner may change a name.
    for mode in ["0755", "1777"] {
        must("chmod", &pair.ours(), &["chmod", mode, "folder"]);
        for _ in 0..2 {
            let target = folder.join(mode);
            let made = pair.run_ours(&["convert", "source", &target.to_string_lossy()]);
            assert_eq!(made.status, Some(0), "{mode}: {made:?}");
            assert_eq!(fs::read(&target).unwrap(), vec![7; 4096]);
            chown(&target, Some(SOMEBODY + 1), None).unwrap();
        }
        assert_eq!(
            fs::read_dir(&folder).unwrap().count(),
            if mode == "0755" { 1 } else { 2 }
        );
    }
}

#[test]
fn no_source_is_its_own_target() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[
        &["sh", "-c", "printf %4096s x > a; printf %4096s y > b"],
        &[
            "qemu-img", "create", "-q", "-f", "qcow2", "-b", "a", "-F", "raw", "over",
        ],
    ]);
    for arguments in [
        ["convert", "-Oraw", "a", "a"].as_slice(),
        &["convert", "-Oqcow2", "a", "a"],
        &["convert", "-Oqcow2", "a", "b", "b"],
        &["convert", "-Oqcow2", "over", "a"],
    ] {
        let refused = pair.same(arguments);
        assert_eq!(refused.status, Some(1), "{arguments:?}");
        assert_eq!(fs::read(pair.ours().join("a")).unwrap().len(), 4096);
    }
}

#[test]
fn a_name_need_not_be_text() {
    let folder = tempfile::tempdir().unwrap();
    let name = OsStr::from_bytes(b"n\xff\xfe");
    for arguments in [
        ["create", "-f", "qcow2"].as_slice(),
        &["info"],
        &["snapshot", "-c", "s"],
        &["check"],
    ] {
        let size = (arguments[0] == "create").then_some("1M");
        let mut tool = Command::new(env!("CARGO_BIN_EXE_image-tool"));
        let tool = tool.args(arguments).arg(name).args(size);
        let output = tool.current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 1);
    assert_eq!(names[0].as_ref().unwrap().file_name(), name);
}

#[test]
fn a_folder_is_no_image() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[&["mkdir", "folder"], &["truncate", "-s", "1M", "source"]]);
    for arguments in [
        ["info", "folder"].as_slice(),
        &["check", "folder"],
        &["check", "-r", "all", "folder"],
        &["resize", "folder", "1M"],
        &["snapshot", "-c", "name", "folder"],
        &["bitmap", "--add", "folder", "name"],
        &["convert", "source", "folder"],
        &["convert", "-n", "-O", "raw", "source", "folder"],
        &["dd", "if=source", "of=folder"],
        &["create", "folder", "1M"],
    ] {
        pair.same(arguments);
    }
}

#[test]
fn a_data_file_in_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.raw");
    let raw = qcow::CreateOptions::new(qcow::Format::Raw, 1 << 20);
    qcow::create(&data, &raw).unwrap();
    let writable = qcow::OpenOptions::new(qcow::Format::Raw).writable(true);
    let user = qcow::Image::open(&data, &writable).unwrap();

    let refused = Command::new(env!("CARGO_BIN_EXE_image-tool"))
        .args([
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "data_file=data.raw",
            "x",
            "1M",
        ])
        .current_dir(folder.path())
        .output()
        .unwrap();

    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(
        message.ends_with("lock\nIs another process using the image [data.raw]?\n"),
        "{message}"
    );
    user.close().unwrap();
}

#[test]
fn a_name_in_an_image_does_not_command_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("x");
    let mut overlay = qcow::CreateOptions::new(qcow::Format::Qcow2, 1 << 20);
    overlay.backing_file = Some("\u{1b}]0;title\u{7}\u{9b}2Jbase".to_owned());
    overlay.backing_format = Some(qcow::Format::Raw);
    qcow::create(&image, &overlay).unwrap();
    for line in ["info x", "map x", "info --output=json x"] {
        let output = Command::new(env!("CARGO_BIN_EXE_image-tool"))
            .args(line.split(' '))
            .current_dir(folder.path())
            .output()
            .unwrap();
        let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(printed.contains("2Jbase"), "{line}: {printed:?}");
        let is_command = |c: char| c.is_control() && c != '\n';
        assert!(!printed.contains(is_command), "{line}: {printed:?}");
    }
}

#[test]
fn a_name_that_is_no_text_is_a_file_and_never_another_one() {
    let folder = tempfile::tempdir().unwrap();
    let run = |words: &[&[u8]]| {
        let words = words.iter().map(|word| OsStr::from_bytes(word));
        let tool = Command::new(env!("CARGO_BIN_EXE_image-tool"))
            .args(words)
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8(tool.stderr).unwrap();
        (tool.status.code(), said)
    };
    let files = || {
        let entries = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    for line in [
        &[&b"create"[..], b"-q", b"-f", b"raw", b"\xff", b"1M"][..],
        &[
            b"convert", b"-f", b"raw", b"-O", b"qcow2", b"\xff", b"q\xfe",
        ],
        &[b"check", b"-q", b"q\xfe"],
        &[b"dd", b"-f", b"raw", b"if=\xff", b"of=q\xfd"],
        &[b"create", b"-q", b"-f", b"qcow2", b"x", b"1M"],
    ] {
        assert_eq!(run(line), (Some(0), String::new()), "{line:?}");
    }
    let before = files();

    for line in [
        &[
            &b"create"[..],
            b"-f",
            b"qcow2",
            b"-b",
            b"\xff",
            b"-F",
            b"raw",
            b"n",
        ][..],
        &[
            b"create",
            b"-f",
            b"qcow2",
            b"-o",
            b"data_file=d\xff",
            b"n",
            b"1M",
        ],
        &[
            b"create",
            b"-f",
            b"qcow2",
            b"-obacking_file=\xff",
            b"n",
            b"1M",
        ],
        &[
            b"convert", b"-O", b"qcow2", b"-B", b"\xff", b"-F", b"raw", b"x", b"n",
        ],
        &[b"rebase", b"-u", b"-b", b"\xff", b"-F", b"raw", b"x"],
        &[b"amend", b"-o", b"backing_file=\xff", b"x"],
        &[b"snapshot", b"-c", b"\xff", b"x"],
        &[b"bitmap", b"--add", b"x", b"\xff"],
        &[b"info", b"--image-opts", b"driver=raw,file.filename=\xff"],
        &[
            b"info",
            b"json:{\"driver\": \"raw\", \"file\": {\"driver\": \"file\", \"filename\": \"\xff\"}}",
        ],
    ] {
        let (status, said) = run(line);
        assert_eq!(status, Some(1), "{line:?}: {said}");
        assert!(said.contains("not valid UTF-8"), "{line:?}: {said}");
        assert_eq!(files(), before, "{line:?}");
    }
}
