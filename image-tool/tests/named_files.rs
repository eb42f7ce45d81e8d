//! Files that an image or the user names and that no image can be in: every verb refuses them at once, and says what
//! they are.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fs;
use std::path::Path;

use pair::{Outcome, Pair, must, reference_is_there};

/// The status of `timeout` when it had to end the command.
const HANGS: Option<i32> = Some(124);

/// Every verb that opens `image`, and other files where it takes them.
fn lines(image: &str) -> Vec<String> {
    [
        "map IMAGE",
        "measure IMAGE",
        "compare IMAGE plain",
        "compare plain IMAGE",
        "convert IMAGE out",
        "convert -n -O qcow2 plain IMAGE",
        "convert -O qcow2 --salvage IMAGE out",
        "dd if=IMAGE of=out",
        "rebase -b plain -F raw IMAGE",
        "commit IMAGE",
        "resize IMAGE 2M",
        "snapshot -l IMAGE",
        "snapshot -c new IMAGE",
        "amend -o lazy_refcounts=on IMAGE",
        "bench -c 1 IMAGE",
        "info --backing-chain IMAGE",
        "create -f qcow2 -F qcow2 -b IMAGE out",
    ]
    .map(|line| line.replace("IMAGE", image))
    .into()
}

fn ours(pair: &Pair, line: &str) -> Outcome {
    let mut words = vec!["20", "image-tool"];
    words.extend(line.split(' '));
    words[1] = env!("CARGO_BIN_EXE_image-tool");
    let output = std::process::Command::new("timeout")
        .args(["--kill-after=1"])
        .args(words)
        .current_dir(pair.ours())
        .output();
    output.unwrap().into()
}

/// An image whose data file is `data`, which is replaced.
fn with_data_file(folder: &Path) {
    let line =
        "qemu-img create -q -f qcow2 -o data_file=data external 1M && rm data && mkfifo data";
    must("make", folder, &["sh", "-e", "-c", line]);
}

#[test]
fn a_fifo_never_keeps_anybody_waiting() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.make(&[
        "mkfifo fifo; truncate -s 1M plain",
        "qemu-img create -q -f qcow2 -u -F raw -b fifo overlay 1M",
        "qemu-img create -q -f qcow2 -u -F qcow2 -b overlay higher 1M",
    ]);
    with_data_file(&pair.ours());
    for (image, kind) in [
        ("fifo", "'fifo' to be a regular file: it is a FIFO"),
        ("overlay", "it is a FIFO, named by 'overlay'"),
        ("higher", "it is a FIFO, named by 'overlay'"),
        ("external", "it is a FIFO, named by 'external'"),
    ] {
        for line in lines(image) {
            let done = ours(&pair, &line);
            assert_ne!(done.status, HANGS, "{line}");
            if image == "external" && line.starts_with("info") {
                // It opens no data file.
                assert_eq!(done.status, Some(0), "{line}: {done:?}");
                continue;
            }
            let expected = if line.starts_with("compare") { 2 } else { 1 };
            assert_eq!(done.status, Some(expected), "{line}: {done:?}");
            assert!(done.stderr.contains(kind), "{line}: {done:?}");
            assert!(!pair.ours().join("out").exists(), "{line}");
        }
        for line in [format!("check {image}"), format!("info {image}")] {
            // These open nothing but the image.
            let expected = if image == "fifo" { 1 } else { 0 };
            assert_eq!(ours(&pair, &line).status, Some(expected), "{line}");
        }
    }
}

#[test]
fn options_and_json_names_lead_through_the_same_gate() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.make(&[
        "mkfifo fifo; truncate -s 1M plain",
        r#"qemu-img create -q -f qcow2 -u -F raw -b 'json:{"driver":"raw","file.filename":"fifo"}' json 1M"#,
    ]);
    with_data_file(&pair.ours());
    for line in [
        "map --image-opts driver=raw,offset=512,file.filename=fifo",
        "map --image-opts driver=qcow2,file.filename=external,data-file.filename=fifo",
        "map --image-opts driver=qcow2,file.filename=json,backing.driver=raw,backing.file.filename=fifo",
        "--follow-json-names map json",
        "--follow-json-names convert json out",
        "create -f qcow2 -o data_file=fifo out 1M",
        "create -f raw fifo 1M",
    ] {
        let done = ours(&pair, line);
        assert_eq!(done.status, Some(1), "{line}: {done:?}");
        assert!(done.stderr.contains("to be a regular file"), "{done:?}");
    }
}

#[test]
fn other_types_are_refused_by_name_and_folders_as_qemu_img_does() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&["truncate -s 1M plain", "mkdir folder"]);
    for verb in ["info", "map", "check", "bench"] {
        pair.same_reading(&[verb, "folder"]);
    }
    std::os::unix::net::UnixListener::bind(pair.ours().join("socket")).unwrap();
    for (name, kind) in [
        ("socket", "a socket"),
        ("/dev/zero", "a character device"),
        ("folder", "a directory"),
    ] {
        let image = format!("qemu-img create -q -f qcow2 -u -F raw -b {name} overlay 1M");
        must("make", &pair.ours(), &["sh", "-e", "-c", &image]);
        for line in lines("overlay") {
            let done = ours(&pair, &line);
            let words = format!("it is {kind}, named by 'overlay'");
            let is_said = done.stderr.contains(&words);
            assert!(is_said, "{line}: {done:?}");
        }
        fs::remove_file(pair.ours().join("overlay")).unwrap();
    }
}
