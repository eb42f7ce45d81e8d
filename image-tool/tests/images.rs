//! `create`, `convert`, `info` and `check` against qemu-img: the same words, and images that each tool takes from
//! the other.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fs;

use pair::images::{BASE, OVERLAY, RAW};
use pair::{Pair, must, reference_is_there};

/// A raw image, a base, an overlay, and what that shows compressed.
fn sources(pair: &Pair) {
    pair.make(&[
        RAW,
        BASE,
        OVERLAY,
        "qemu-img convert -q -c -O qcow2 overlay compressed",
        "qemu-img convert -q -c -O qcow2 -o compression_type=zstd overlay zstd",
    ]);
}

#[test]
fn create_makes_the_same_image() {
    if !reference_is_there() {
        return;
    }
    for options in [
        "cluster_size=65536",
        "cluster_size=512",
        "cluster_size=2M",
        "compat=0.10",
        "compat=v2,cluster_size=4k",
        "compat=v3,lazy_refcounts=on",
        "refcount_bits=1",
        "refcount_bits=64",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16k",
        "compression_type=zstd",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full,cluster_size=1k",
        "data_file=data",
        "data_file=data,data_file_raw=on",
        "backing_file=base,backing_fmt=raw",
        "lazy_refcounts",
        "nolazy_refcounts",
    ] {
        let pair = Pair::new();
        pair.prepare(&[&["qemu-img", "create", "-q", "-f", "raw", "base", "1M"]]);
        pair.same(&["create", "-f", "qcow2", "-o", options, "x", "5.5M"]);
        pair.same_image("x", "qcow2");
    }
}

#[test]
fn create_takes_sizes_and_backing_files_as_qemu_img_does() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[
        &["mkdir", "sub"],
        &["qemu-img", "create", "-q", "-f", "qcow2", "sub/base", "3M"],
    ]);
    for args in [
        &["create", "x", "100"][..],
        &["create", "-q", "x", "1.5k"],
        &["create", "-f", "raw", "-o", "preallocation=full", "x", "1M"],
        &[
            "create",
            "-f",
            "raw",
            "-o",
            "preallocation=falloc,nocow=off",
            "x",
            "1M",
        ],
        &["create", "x", "0"],
    ] {
        pair.same(args);
        assert_eq!(
            fs::read(pair.ours().join("x")).unwrap(),
            fs::read(pair.theirs().join("x")).unwrap(),
            "{args:?}"
        );
    }
    for args in [
        &["create", "-fqcow2", "-b", "base", "-Fqcow2", "sub/x"][..],
        &[
            "create",
            "sub/x",
            "--form=qcow2",
            "2G",
            "--backing",
            "base",
            "--backing-f",
            "qcow2",
        ],
        &[
            "create", "-f", "qcow2", "-u", "-b", "gone", "-F", "raw", "sub/x", "1M",
        ],
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "size=1M",
            "-o",
            "cluster_size=1k,backing_file=base",
            "-F",
            "qcow2",
            "sub/x",
        ],
        &["create", "-f", "qcow2", "sub/x", "64T"],
    ] {
        pair.same(args);
        let info = &["qemu-img", "info", "-f", "qcow2", "--output=json", "sub/x"];
        let ours = must("info", &pair.ours(), info);
        let theirs = must("info", &pair.theirs(), info);
        assert_eq!(
            pair::without_host_sizes(&ours),
            pair::without_host_sizes(&theirs),
            "{args:?}"
        );
    }
}

#[test]
fn info_and_check_say_the_same_of_every_image() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    must(
        "dirty",
        &pair.theirs(),
        &[
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "lazy_refcounts=on",
            "dirty",
            "1M",
        ],
    );
    must(
        "bitmap",
        &pair.theirs(),
        &["qemu-img", "bitmap", "--add", "base", "b0"],
    );
    must(
        "bitmap",
        &pair.theirs(),
        &[
            "qemu-img",
            "bitmap",
            "--add",
            "--disable",
            "-g",
            "512",
            "base",
            "b1",
        ],
    );
    for image in ["a.raw", "base", "overlay", "compressed", "zstd", "dirty"] {
        pair.same_reading(&["info", image]);
        pair.same_reading(&["info", "--output=json", image]);
        pair.same_reading(&["info", "--out=human", "-U", image]);
        pair.same_reading(&["info", "--backing-chain", image]);
        pair.same_reading(&["info", "--backing-chain", "--output=json", image]);
        pair.same_reading(&["check", image]);
        pair.same_reading(&["check", "-q", image]);
        pair.same_reading(&["check", "-U", "--output=json", image]);
    }
    pair.same_reading(&["info", "-f", "raw", "base"]);
    pair.same_reading(&["info", "--image-opts", "driver=qcow2,file.filename=base"]);
    pair.same_reading(&[
        "info",
        "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"base\"}}",
    ]);
    pair.same_reading(&["info", "file:base"]);
    fs::remove_file(pair.theirs().join("base")).unwrap();
    pair.same_reading(&["info", "overlay"]);
    pair.same_reading(&["info", "--backing-chain", "overlay"]);
    // The backing file is no part of what is checked, and is not opened.
    assert_eq!(pair.read_both(&["check", "overlay"]).0.status, Some(0));
    pair.same_reading(&["convert", "overlay", "x"]);
}

#[test]
fn convert_makes_the_same_image() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    for args in [
        &["convert", "a.raw"][..],
        &["convert", "-f", "raw", "base"],
        &["convert", "base"],
        &["convert", "overlay"],
        &["convert", "compressed"],
        &["convert", "zstd"],
        &["convert", "-l", "first", "overlay"],
        &["convert", "-l", "snapshot.name=first", "overlay"],
        &["convert", "-S", "0", "base"],
        &["convert", "-S", "64k", "a.raw"],
        &["convert", "-W", "-m", "16", "overlay"],
        &["convert", "-p", "-q", "overlay"],
        &["convert", "a.raw", "base", "overlay"],
        &["convert", "-t", "none", "-T", "writeback", "base"],
        &[
            "convert",
            "--image-opts",
            "driver=qcow2,file.filename=overlay",
        ],
        &["convert", "-o", "preallocation=full", "base"],
    ] {
        let args: Vec<_> = args.iter().copied().chain(["x"]).collect();
        pair.same(&args);
        let (ours, theirs) = (
            fs::read(pair.ours().join("x")).unwrap(),
            fs::read(pair.theirs().join("x")).unwrap(),
        );
        assert!(ours == theirs, "the raw files differ after {args:?}");
    }
    for args in [
        &["-f", "raw", "a.raw"][..],
        &["a.raw", "overlay"],
        &["overlay"],
        &["-c", "overlay"],
        &["-c", "-o", "compression_type=zstd", "a.raw"],
        &["-c", "-o", "cluster_size=4k", "overlay"],
        &["-S", "0", "base"],
        &["-o", "extended_l2=on,cluster_size=128k", "overlay"],
        &["-o", "compat=0.10", "overlay"],
        &["-o", "preallocation=metadata", "overlay"],
        &["-o", "refcount_bits=1,lazy_refcounts=on", "overlay"],
        &["-o", "data_file=data", "overlay"],
        &["-B", "base", "-F", "qcow2", "overlay"],
        &["-B", "a.raw", "-F", "raw", "-c", "overlay"],
        &["zstd"],
    ] {
        let args: Vec<_> = ["convert", "-O", "qcow2"]
            .iter()
            .chain(args)
            .copied()
            .chain(["x"])
            .collect();
        pair.same(&args);
        pair.same_image("x", "qcow2");
    }
}

#[test]
fn zeroes_that_are_left_out_do_not_count_against_the_rate() {
    let pair = Pair::new();
    fs::write(pair.ours().join("zeroes"), vec![0; 1 << 20]).unwrap();

    // Written, they would take days.
    for target in [vec!["raw"], vec!["qcow2"], vec!["qcow2", "-c"]] {
        let line = [&["convert", "-r", "1", "-O"], &target[..], &["zeroes", "a"]].concat();
        assert_eq!(pair.run_ours(&line).status, Some(0), "{line:?}");
    }
}

#[test]
fn convert_into_an_image_that_exists() {
    if !reference_is_there() {
        return;
    }
    for extra in [&[][..], &["--target-is-zero"], &["-S", "0"]] {
        let pair = Pair::new();
        sources(&pair);
        pair.prepare(&[
            &["qemu-img", "create", "-q", "-f", "qcow2", "x", "12M"],
            &[
                "qemu-io",
                "-f",
                "qcow2",
                "-c",
                if extra.contains(&"--target-is-zero") {
                    "write -z 0 12M"
                } else {
                    "write -P 9 0 12M"
                },
                "x",
            ],
        ]);
        let args: Vec<_> = ["convert", "-n", "-O", "qcow2"]
            .iter()
            .chain(extra)
            .copied()
            .chain(["overlay", "x"])
            .collect();
        pair.same(&args);
        pair.same_image("x", "qcow2");
        pair.same(&["convert", "-n", "-O", "qcow2", "a.raw", "base"]);
    }
}

#[test]
fn an_image_that_another_process_writes_is_refused() {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    let mut writer = Command::new("qemu-io")
        .args(["-f", "qcow2", "base"])
        .current_dir(pair.theirs())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // A first answer shows that the image is open.
    let mut commands = writer.stdin.take().unwrap();
    commands.write_all(b"length\n").unwrap();
    let mut answer = [0u8; 1];
    std::io::Read::read_exact(writer.stdout.as_mut().unwrap(), &mut answer).unwrap();

    for args in [
        &["info", "base"][..],
        &["check", "base"],
        &["convert", "base", "x"],
        &["convert", "a.raw", "base"],
        &["convert", "-n", "-O", "qcow2", "a.raw", "base"],
        &["create", "-f", "qcow2", "base", "1M"],
        &["commit", "base"],
        &["amend", "-o", "compat=1.1", "base"],
        &["resize", "base", "+1M"],
        &["snapshot", "-l", "base"],
    ] {
        let outcome = pair.same_reading(args);
        assert!(
            outcome
                .stderr
                .contains(" lock\nIs another process using the image [base]?"),
            "{args:?}: {outcome:?}"
        );
    }
    pair.same_reading(&["info", "-U", "base"]);
    commands.write_all(b"quit\n").unwrap();
    drop(commands);
    writer.wait().unwrap();
}

#[test]
fn a_chain_that_loops_is_refused_in_the_same_words() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.make(&[
        "qemu-img create -q -f qcow2 a 1M",
        "qemu-img create -q -f qcow2 -b a -F qcow2 b",
        "qemu-img rebase -u -f qcow2 -b b -F qcow2 a",
    ]);
    pair.same(&["info", "--backing-chain", "a"]);
    pair.same(&["info", "b"]);

    // By other names: qemu-img goes on until a name is too long.
    pair.make(&[
        "mkdir sub",
        "qemu-img rebase -u -f qcow2 -b sub/../a -F qcow2 b",
    ]);
    for args in [&["info", "--backing-chain", "a"][..], &["map", "a"]] {
        let refused = pair.run_ours(args);
        assert_eq!(refused.status, Some(1));
        let says = "Backing file 'sub/../a' creates an infinite loop.";
        assert!(refused.stderr.contains(says), "{}", refused.stderr);
    }
}
