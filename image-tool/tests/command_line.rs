//! Command lines that qemu-img refuses are refused in the same words and with the same status.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

mod pair;

use pair::{Pair, reference_is_there};

/// Runs each command line in both tools.
#[track_caller]
fn all_the_same(pair: &Pair, lines: &[&str]) {
    let mut different = String::new();
    for line in lines {
        let args: Vec<_> = line
            .split(' ')
            .map(|word| if word == "''" { "" } else { word })
            .collect();
        let (ours, theirs) = pair.run_both(&args);
        if ours != theirs {
            let _ = writeln!(
                different,
                "{line}\n  ours:   {ours:?}\n  theirs: {theirs:?}"
            );
        }
    }
    assert!(different.is_empty(), "these differ:\n{different}");
}

#[test]
fn getopt_errors() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    all_the_same(
        &pair,
        &[
            "foo",
            "--foo",
            "-x",
            "create",
            "create -z",
            "create --foo",
            "create --format",
            "create -f",
            "create --help=3",
            "create -q=3 a 1",
            "create a 1 2",
            "create --b=1 --zz",
            "info",
            "info --fo x",
            "info a b",
            "info -zq",
            "info --output=x a",
            "check",
            "check -r foo x",
            "check --output xml x",
            "convert",
            "convert a",
            "convert --source=3",
            "convert --zz a b",
        ],
    );
}

#[test]
fn values_that_make_no_sense() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[
        &["qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "10M"],
        &["qemu-img", "create", "-q", "-f", "raw", "a.raw", "1M"],
    ]);
    all_the_same(
        &pair,
        &[
            "create -f foo x 1M",
            "create -f qcow2 x",
            "create -f qcow2 x 1Z",
            "create -f qcow2 x 1.5",
            "create -f qcow2 x 9E",
            "create -f qcow2 x -- -5",
            "create -f qcow2 -o foo=1 x 1M",
            "create -f qcow2 -o ,x 1M",
            "create -f qcow2 -o size=1M x 2M",
            "create -f qcow2 -o lazy_refcounts=maybe x 1M",
            "create -f qcow2 -o cluster_size=x x 1M",
            "create -f qcow2 -o refcount_bits=x x 1M",
            "create -f raw -b a.qcow2 -F qcow2 x",
            "create -f raw -F qcow2 x 1M",
            "create -f qcow2 -b a.qcow2 x",
            "create -f qcow2 -b a.raw x",
            "create -f qcow2 -b nope -F qcow2 x",
            "create -f qcow2 -b nope -F foo x",
            "create -f qcow2 -b a.raw -F qcow2 x",
            "create -f qcow2 -b x -F qcow2 x",
            "create -f qcow2 -b '' -F qcow2 x 1M",
            "create -f qcow2 -u -b nope -F qcow2 x",
            "create -f qcow2 -u -b nope x 1M",
            "create -f qcow2 -o backing_file=nope,,too,backing_fmt=raw x",
            "info nope",
            "info /dev",
            "info -f raw /dev",
            "info ''",
            "info -f foo a.raw",
            "info -f qcow2 a.raw",
            "info foo:bar",
            "info --image-opts driver=qcow2",
            "info --image-opts -f raw driver=qcow2",
            "info --image-opts driver=qcow2,file.driver=file,file.filename=a.qcow2,foo=1",
            "info json:{\"driver\":\"qcow2\"}",
            "check nope",
            "check a.raw",
            "check --output=json a.raw",
            "check -T foo a.qcow2",
            "convert a b",
            "convert -O foo a.qcow2 x",
            "convert -S 3 a.qcow2 x",
            "convert -S 3z a.qcow2 x",
            "convert -S 17M a.qcow2 x",
            "convert -m 0 a.qcow2 x",
            "convert -m 17 a.qcow2 x",
            "convert -m a a.qcow2 x",
            "convert -T foo a.qcow2 x",
            "convert -c a.qcow2 x",
            "convert -n a.qcow2 nope",
            "convert -l foo a.qcow2 x",
            "convert -l snapshot.name=foo a.qcow2 x",
            "convert -O qcow2 -B a.qcow2 a.qcow2 x",
            "convert -O qcow2 -o foo=1 a.qcow2 x",
            "convert -O qcow2 -o cluster_size=3 a.qcow2 x",
            "convert -O qcow2 -o , a.qcow2 x",
            "convert a.qcow2 a.qcow2",
            "convert a.qcow2 /nope/x",
            "convert -O qcow2 a.qcow2 /nope/x",
            "convert -C -S 4k a.qcow2 x",
            "convert -C -c a.qcow2 x",
            "convert -C --salvage a.qcow2 x",
            "convert --target-is-zero a.qcow2 x",
            "convert --skip-broken-bitmaps a.qcow2 x",
            "convert --bitmaps a.raw x",
            "convert --bitmaps a.qcow2 a.qcow2 x",
            "convert --bitmaps -O raw a.qcow2 x",
            "convert --image-opts -f raw a.qcow2 x",
            "convert --target-image-opts a.qcow2 x",
            "convert -c -O qcow2 -o preallocation=full a.qcow2 x",
            "convert -n -o size=1 a.qcow2 x",
            "convert -r x a.qcow2 x",
            "convert -O qcow2 -B a.qcow2 -F qcow2 a.raw a.raw x",
        ],
    );
    assert!(
        !pair.ours().join("x").exists(),
        "a refused command left a file behind"
    );
}

#[test]
fn help_of_format_options() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    all_the_same(
        &pair,
        &[
            "create -f qcow2 -o help",
            "create -f qcow2 -o help x",
            "create -f raw -o help",
            "create -f raw -o ? x",
            "create -f foo -o help",
            "convert -O qcow2 -o help",
            "convert -O qcow2 -o size=1,help a x",
        ],
    );
}

/// What `create` announces before it finds out that the values do not go together.
#[test]
fn option_values_that_do_not_go_together() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[&["qemu-img", "create", "-q", "-f", "qcow2", "b", "1M"]]);
    for options in [
        "cluster_size=3k",
        "cluster_size=4M",
        "cluster_size=256",
        "compat=3",
        "compat=0.10,lazy_refcounts=on",
        "compat=0.10,refcount_bits=1",
        "compat=0.10,extended_l2=on",
        "compat=0.10,compression_type=zstd",
        "compat=0.10,data_file=d",
        "refcount_bits=3",
        "refcount_bits=128",
        "preallocation=foo",
        "compression_type=foo",
        "extended_l2=on,cluster_size=8k",
        "data_file_raw=on",
        "data_file=d,data_file_raw=on,backing_file=b,backing_fmt=qcow2",
        "preallocation=full,backing_file=b,backing_fmt=qcow2",
        "nocow",
        "backing_fmt=raw",
    ] {
        let ours = pair.run_ours(&["create", "-f", "qcow2", "-o", options, "x", "1M"]);
        let theirs = pair.run_theirs(&["create", "-f", "qcow2", "-o", options, "x", "1M"]);
        assert_eq!(ours, theirs, "{options}");
        assert!(
            !pair.ours().join("x").exists(),
            "{options} left a file behind"
        );
    }
    pair.same(&[
        "create",
        "-f",
        "raw",
        "-o",
        "preallocation=metadata",
        "x",
        "1M",
    ]);
    pair.same(&["create", "-f", "raw", "-o", "preallocation=foo", "x", "1M"]);
    pair.same(&["create", "-f", "qcow2", "/nope/x", "1M"]);
}

#[test]
fn nobody_has_to_listen() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[
        &["qemu-img", "create", "-q", "-f", "qcow2", "image", "1M"],
        &["truncate", "-s", "1000", "raw"],
    ]);
    for (arguments, outputs) in [
        ("info missing", "2>/dev/full"),
        ("info -z image", "2>/dev/full"),
        ("resize image 1k", "2>/dev/full"),
        ("resize -q raw 5000", "2>/dev/full"),
        ("convert -p image copy", ">/dev/full 2>/dev/full"),
        ("create -f raw new 1M", ">/dev/full"),
        ("info --output=json image", ">&- 2>&-"),
        ("info missing", ">&- 2>&-"),
    ] {
        let status = |tool: &Path, folder: &Path| {
            let line = format!("\"$0\" {arguments} {outputs}");
            let mut shell = Command::new("sh");
            let shell = shell.arg("-c").arg(line).arg(tool).current_dir(folder);
            shell.status().unwrap().code()
        };
        let ours = status(Path::new(env!("CARGO_BIN_EXE_image-tool")), &pair.ours());
        let theirs = status(Path::new("qemu-img"), &pair.theirs());
        assert_eq!(ours, theirs, "{arguments} {outputs}");
    }
}

#[test]
fn options_end_at_the_first_operand_where_posix_is_asked_for() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[&["qemu-img", "create", "-q", "-f", "qcow2", "image", "1M"]]);
    let said = |tool: &Path| {
        let mut command = Command::new(tool);
        let command = command.args(["info", "image", "--output=json"]);
        let output = command
            .env("POSIXLY_CORRECT", "1")
            .current_dir(pair.theirs())
            .output();
        output.unwrap().status.code()
    };
    let ours = said(Path::new(env!("CARGO_BIN_EXE_image-tool")));
    assert_eq!(ours, said(Path::new("qemu-img")));
    assert_eq!(ours, Some(1));
}
