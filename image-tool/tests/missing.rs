//! Images whose file ends before their data: no verb takes what is missing for zeroes. Images whose file ends within
//! the last cluster are sound.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fs;
use std::path::Path;

use pair::{Outcome, reference_is_there, shell};

/// Most of the disk is there, as in a copy that was cut off shortly before it was complete.
const DISK: u64 = 8 << 20;
const CUT: u64 = 256 << 10;
/// The first byte that is missing.
const FIRST: u64 = DISK - CUT;

/// A folder with an image of `DISK` bytes, all of them data, whose file is cut.
fn folder(options: &str, cut: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("raw"), vec![7; DISK as usize]).unwrap();
    let line = format!("$T convert -f raw -O qcow2 {options} raw image");
    assert_eq!(shell(folder.path(), &line).status, Some(0));
    let file = fs::OpenOptions::new()
        .write(true)
        .open(folder.path().join(cut))
        .unwrap();
    file.set_len(file.metadata().unwrap().len() - CUT).unwrap();
    folder
}

fn fails(folder: &Path, line: &str, status: i32, message: &str) {
    let Outcome {
        status: found,
        stdout,
        stderr,
    } = shell(folder, &format!("$T {line}"));
    assert_eq!(
        (found, &*stderr),
        (Some(status), &*format!("image-tool: {message}\n")),
        "{line}: {stdout}"
    );
}

#[test]
fn what_is_missing_is_no_zeroes_for_any_verb() {
    let folder = folder("", "image");
    let folder = folder.path();
    // Header, refcount table, refcount block, L1 table and L2 table come before the data.
    let host = FIRST + (5 << 16);
    let missing = format!("the data at {host:#x} lies past the end of the file");
    let at_byte =
        format!("error while reading at byte {FIRST}: the data lies past the end of the file");

    fails(
        folder,
        "convert -f qcow2 -O raw image new",
        1,
        &format!("{at_byte} 'image'"),
    );
    let message = format!("error while reading from input image file: {missing}");
    fails(
        folder,
        "dd -f qcow2 -O raw bs=64k if=image of=new",
        1,
        &message,
    );
    assert!(!folder.join("new").exists());

    let reading = |name: &str| format!("Error while reading offset {FIRST} of {name}: {missing}");
    fails(
        folder,
        "compare -f raw -F qcow2 raw image",
        4,
        &reading("image"),
    );
    fails(
        folder,
        "compare -f qcow2 -F qcow2 image image",
        4,
        &reading("image"),
    );
}

#[test]
fn neither_commit_nor_rebase_writes_what_is_missing_as_zeroes() {
    let folder = folder("", "image");
    let folder = folder.path();
    for line in [
        "$T create -q -f qcow2 base 8M",
        "cp image top; $T rebase -u -f qcow2 -F qcow2 -b base top",
        "$T create -q -f qcow2 -F qcow2 -b image overlay",
    ] {
        assert_eq!(shell(folder, line).status, Some(0), "{line}");
    }

    let message =
        format!("Block job failed: the data at offset {FIRST} lies past the end of the file 'top'");
    fails(folder, "commit -q -f qcow2 top", 1, &message);
    let message = "error while reading from old backing file";
    fails(folder, "rebase -f qcow2 -b '' overlay", 1, message);
}

#[test]
fn a_data_file_and_a_part_of_a_file_are_looked_at_as_well() {
    let at_byte =
        format!("error while reading at byte {FIRST}: the data lies past the end of the file");

    let split = folder("-o data_file=data", "data");
    fails(
        split.path(),
        "convert -f qcow2 -O raw image new",
        1,
        &format!("{at_byte} 'image'"),
    );

    let whole = folder("", "image");
    let image = fs::read(whole.path().join("image")).unwrap();
    fs::write(
        whole.path().join("part"),
        [vec![0; 1 << 16], image].concat(),
    )
    .unwrap();
    let part = "driver=qcow2,file.driver=raw,file.offset=65536,file.file.filename=part";
    let line = format!("convert --image-opts {part} -O raw new");
    fails(whole.path(), &line, 1, &format!("{at_byte} 'part'"));
}

#[test]
fn a_file_that_ends_within_its_last_cluster_is_sound() {
    if !reference_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for line in [
        // QEMU leaves a part of the last cluster out.
        "qemu-img create -q -f qcow2 -o preallocation=metadata image 5000k",
        "qemu-img resize -q --preallocation=metadata image 7001k",
        "$T convert -f qcow2 -O raw image out",
        "$T dd -f qcow2 -O raw if=image of=copy bs=64k",
        "$T compare -f qcow2 -F raw image out",
        "$T compare -f raw -F raw copy out",
        "qemu-img create -q -f qcow2 -o preallocation=metadata,data_file=data image 5000k",
        "qemu-img resize -q image 7001k",
        "$T convert -f qcow2 -O raw image out",
    ] {
        let done = shell(folder.path(), line);
        assert_eq!((done.status, &*done.stderr), (Some(0), ""), "{line}");
    }
}
