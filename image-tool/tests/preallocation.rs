//! Space that is reserved: where it lies, what a map says of it, and what becomes of more than the host has.

#![allow(clippy::disallowed_macros, reason = "a test prints why it was skipped")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use pair::{Outcome, Pair, must, reference_is_there};

/// The command line that makes the image larger by so much, with space reserved in that mode.
fn growth<'a>(preallocation: &'a str, by: &'a str) -> [&'a str; 7] {
    ["resize", "-q", "-f", "qcow2", preallocation, "image", by]
}

#[test]
fn no_refcount_block_lies_in_what_is_preallocated() {
    if !reference_is_there() {
        return;
    }
    for (options, size) in [
        ("cluster_size=512", "2M"),
        ("cluster_size=2k,refcount_bits=32", "3M"),
        ("cluster_size=4k", "24M"),
        ("cluster_size=4k,refcount_bits=64", "24M"),
    ] {
        let pair = Pair::new();
        let options = format!("{options},preallocation=metadata");
        pair.same(&["create", "-q", "-f", "qcow2", "-o", &options, "image", size]);
        pair.same(&["map", "--output=json", "image"]);
        pair.same(&growth("--preallocation=metadata", "+5M"));
        pair.same(&["map", "--output=json", "image"]);
        pair.same(&["check", "--output=json", "image"]);
    }
}

#[test]
fn what_is_reserved_is_one_piece_however_many_tables_lead_to_it() {
    if !reference_is_there() {
        return;
    }
    for (options, size) in [
        ("cluster_size=512", "3M"),
        ("cluster_size=4k", "9M"),
        ("cluster_size=2k,refcount_bits=64", "5M"),
        ("cluster_size=16k,extended_l2=on", "40M"),
    ] {
        for mode in ["falloc", "full"] {
            let pair = Pair::new();
            let options = format!("{options},preallocation={mode}");
            pair.same(&["create", "-q", "-f", "qcow2", "-o", &options, "image", size]);
            let map = pair.read_both(&["map", "--output=json", "image"]);
            let pieces = |outcome: &Outcome| outcome.stdout.lines().count();
            assert_eq!(pieces(&map.0), pieces(&map.1), "{options}: {map:?}");
            pair.same(&["check", "-q", "image"]);
            let write = ["qemu-io", "-c", "write -P 3 0 3M", "image"];
            must("write", &pair.ours(), &write);
            let more = format!("--preallocation={mode}");
            pair.same(&growth(&more, "+17M"));
            pair.same(&["check", "-q", "image"]);
            let zeroes = format!("read -P 0 {size} 17M");
            let read = ["qemu-io", "-c", "read -P 3 0 3M", "-c", &zeroes, "image"];
            let printed = must("read", &pair.ours(), &read);
            assert!(!printed.contains("failed"), "{options}: {printed}");
        }
    }
}

#[test]
fn behind_the_end_of_the_disk_its_last_cluster_is_stored() {
    if !reference_is_there() {
        return;
    }
    for size in ["31k", "1000k", "33554944", "1M"] {
        for mode in ["metadata", "falloc", "full"] {
            let pair = Pair::new();
            let options = format!("preallocation={mode}");
            pair.same(&["create", "-q", "-f", "qcow2", "-o", &options, "image", size]);
            pair.same(&["map", "--output=json", "image"]);
        }
    }
}

#[test]
fn a_file_that_the_host_cannot_make_as_long_is_refused_at_once() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    let folder = pair.ours();
    // Some file systems would take it; then it is a matter of hours.
    let probe = File::create(folder.join("probe")).unwrap();
    if probe.set_len(20 << 40).is_ok() {
        return;
    }
    // Without a table of which there are 32768 for what the host can: it writes the header, and what is in one piece.
    let with_few_writes = |args: &[&str]| {
        let outcome = Command::new("strace")
            .args(["-f", "-qq", "-o", "log", "-e", "trace=pwrite64,pwritev"])
            .arg(env!("CARGO_BIN_EXE_image-tool"))
            .args(args)
            .current_dir(&folder)
            .output()
            .unwrap();
        let outcome = Outcome::from(outcome);
        assert_eq!(outcome.status, Some(1), "{}", outcome.stderr);
        let log = fs::read_to_string(folder.join("log")).unwrap();
        let writes = log.lines().count();
        assert!((1..1000).contains(&writes), "{writes} writes");
        outcome.stderr
    };
    let create = ["create", "-q", "-f", "qcow2"];
    let options = ["-o", "preallocation=metadata", "image", "20T"];
    let printed = with_few_writes(&[&create[..], &options].concat());
    assert!(printed.contains("The image size is too large"), "{printed}");
    assert!(!folder.join("image").exists());
    pair.run_ours(&[&create[..], &["image", "1G"]].concat());
    let resize = ["resize", "-f", "qcow2", "--preallocation=metadata"];
    let printed = with_few_writes(&[&resize[..], &["image", "20T"]].concat());
    assert!(
        printed.ends_with(": Allocating clusters failed: File too large\n"),
        "{printed}"
    );
    let size = fs::metadata(folder.join("image")).unwrap().len();
    assert!(size < 64 << 20, "{size}");
}

#[test]
fn preallocation_includes_the_cluster_that_the_old_end_cut_off() {
    if !reference_is_there() {
        return;
    }
    for (options, mode) in [
        ("cluster_size=64k", "falloc"),
        ("extended_l2=on", "falloc"),
        ("extended_l2=on", "full"),
        ("extended_l2=on", "metadata"),
    ] {
        let pair = Pair::new();
        let folder = pair.ours();
        let run = |args: &[&str]| {
            let outcome = pair.run_ours(args);
            assert_eq!(outcome.status, Some(0), "{args:?}: {}", outcome.stderr);
        };
        run(&[
            "create", "-q", "-f", "qcow2", "-o", options, "image", "2000k",
        ]);
        let preallocation = format!("--preallocation={mode}");
        run(&growth(&preallocation, "+16k"));
        let len = || fs::metadata(folder.join("image")).unwrap().len();
        let write = |what: &str| must("write", &folder, &["qemu-io", "-c", what, "image"]);
        write("write -P 1 0 2000k");
        let before = len();
        write("write -P 2 2000k 16k");
        assert_eq!(len(), before, "{options} {mode}");
        run(&["check", "-q", "image"]);
    }
}

#[test]
fn what_grows_within_a_cluster_that_has_a_place_is_reserved_too() {
    if !reference_is_there() {
        return;
    }
    for mode in ["falloc", "full"] {
        let pair = Pair::new();
        let options = "extended_l2=on,preallocation=metadata";
        pair.same(&[
            "create", "-q", "-f", "qcow2", "-o", options, "image", "2000k",
        ]);
        let preallocation = format!("--preallocation={mode}");
        pair.same(&growth(&preallocation, "+16k"));
        let image = pair.ours().join("image");
        let write = |what: &str| {
            must("write", &pair.ours(), &["qemu-io", "-c", what, "image"]);
            fs::metadata(&image).unwrap().blocks()
        };
        let before = write("write 0 2000k");
        assert_eq!(write("write 2000k 16k"), before, "{mode}");
        pair.same(&["check", "-q", "image"]);
    }
}

#[test]
fn what_is_reserved_in_subclusters_is_not_said_to_be_stored() {
    if !reference_is_there() {
        return;
    }
    for backing in ["", ",backing_file=base,backing_fmt=qcow2"] {
        for mode in ["metadata", "falloc", "full"] {
            let create =
                format!("qemu-img create -q -f qcow2 -o extended_l2=on{backing} image 2000k");
            let pair = Pair::prepared(&["qemu-img create -q -f qcow2 base 3M", &create]);
            let folder = pair.ours();
            let preallocation = format!("--preallocation={mode}");
            pair.same(&growth(&preallocation, "+80k"));
            if backing.is_empty() {
                pair.same(&["map", "--output=json", "image"]);
            }
            // A guest's write to it finds everything in its place.
            let reserved = fs::metadata(folder.join("image")).unwrap().len();
            let write = "write -P 2 2000k 80k";
            must("write", &folder, &["qemu-io", "-c", write, "image"]);
            let len = fs::metadata(folder.join("image")).unwrap().len();
            assert_eq!(len, reserved, "{mode} {backing}");
        }
    }
}

/// Runs image-tool where the system call fallocate fails with this error.
fn without_fallocate(pair: &Pair, error: &str, line: &str) -> Option<Outcome> {
    let inject = format!("inject=fallocate:error={error}");
    let output = std::process::Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &inject])
        .arg(env!("CARGO_BIN_EXE_image-tool"))
        .args(line.split(' '))
        .current_dir(pair.ours())
        .output();
    match output {
        Ok(output) => Some(output.into()),
        Err(_) => {
            eprintln!("skipped: strace is not installed");
            None
        }
    }
}

#[test]
fn a_file_system_without_fallocate_gets_zeroes_instead() {
    if !reference_is_there() {
        return;
    }
    const MIB: u64 = 1 << 20;
    for error in ["EOPNOTSUPP", "EINVAL", "ENOSYS"] {
        let pair = Pair::new();
        pair.make(&[
            "qemu-img create -q -f raw a 3M; qemu-io -f raw -c 'write -P 7 1M 1M' a",
            "qemu-img create -q -f raw grown 3M; qemu-io -f raw -c 'write -P 7 1M 1M' grown",
            "qemu-img create -q -f qcow2 larger 3M; qemu-io -f qcow2 -c 'write -P 7 1M 1M' larger",
        ]);
        for (line, image, least) in [
            ("create -f raw -o preallocation=falloc raw 10M", "raw", 10),
            ("create -f qcow2 -o preallocation=falloc one 10M", "one", 10),
            ("create -f qcow2 -o preallocation=full two 10M", "two", 10),
            ("convert -O raw -o preallocation=falloc a three", "three", 3),
            ("convert -O qcow2 -o preallocation=falloc a four", "four", 3),
            (
                "resize -f raw --preallocation=falloc grown 12M",
                "grown",
                10,
            ),
            ("resize -f raw --preallocation=full grown 13M", "grown", 11),
            (
                "resize -f qcow2 --preallocation=falloc larger 12M",
                "larger",
                10,
            ),
            ("convert -O qcow2 a plain", "plain", 1),
        ] {
            let Some(done) = without_fallocate(&pair, error, line) else {
                return;
            };
            assert_eq!(done.status, Some(0), "{error} {line}: {done:?}");
            let stored = fs::metadata(pair.ours().join(image)).unwrap().blocks() * 512;
            assert!(stored >= least * MIB, "{error} {line}: {stored} bytes");
        }
        let same = |command: &[&str]| must("look", &pair.ours(), command);
        for image in ["one", "two", "four", "larger", "plain"] {
            same(&["qemu-img", "check", "-q", image]);
        }
        for image in ["three", "four", "grown", "larger", "plain"] {
            // A disk that is longer differs in nothing but zeroes.
            same(&["qemu-img", "compare", "-q", "a", image]);
        }
    }
}
