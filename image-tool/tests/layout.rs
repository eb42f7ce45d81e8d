//! Where things lie in an image, and what is said of a damaged one, where QEMU's own tests look at it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use pair::{Pair, reference_is_there};

fn lengths(pair: &Pair, name: &str) -> [u64; 2] {
    [pair.ours(), pair.theirs()].map(|side| fs::metadata(side.join(name)).unwrap().len())
}

/// The image begins with other bytes at `offset` in both folders.
fn poke(pair: &Pair, name: &str, offset: u64, bytes: &[u8]) {
    for side in [pair.ours(), pair.theirs()] {
        let file = File::options().write(true).open(side.join(name)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }
}

#[test]
fn bitmaps_are_stored_anew_together_and_the_file_ends_with_their_directory() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&["qemu-img create -q -f qcow2 -o cluster_size=2M image 2T"]);
    for args in [
        ["-g", "512", "image", "first"],
        ["-g", "2M", "image", "second"],
        ["-g", "1G", "image", "third"],
    ] {
        let args: Vec<_> = ["bitmap", "--add"].into_iter().chain(args).collect();
        pair.same(&args);
        let [ours, theirs] = lengths(&pair, "image");
        assert_eq!(ours, theirs, "{args:?}");
    }
}

#[test]
fn what_grows_within_a_cluster_becomes_zero_subclusters() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[
        &["qemu-img", "create", "-q", "-f", "qcow2", "base", "1M"],
        &[
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "extended_l2=on",
            "-b",
            "base",
            "-F",
            "qcow2",
            "image",
            "1M",
        ],
        &["qemu-io", "-c", "write -P 7 0 1M", "image"],
    ]);
    for (shrunk, grown) in [("520k", "567k"), ("500k", "600k"), ("499k", "560k")] {
        pair.same(&["resize", "-q", "-f", "qcow2", "--shrink", "image", shrunk]);
        pair.same(&["resize", "-q", "-f", "qcow2", "image", grown]);
        pair.same(&["map", "--output=json", "image"]);
        pair.same_image("image", "qcow2");
    }
}

#[test]
fn a_raw_image_that_ends_within_a_sector_is_mapped_alike() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    fs::write(pair.theirs().join("data"), vec![3u8; 5000]).unwrap();
    fs::write(pair.theirs().join("hole"), []).unwrap();
    let hole = File::options()
        .write(true)
        .open(pair.theirs().join("hole"))
        .unwrap();
    hole.set_len(70001).unwrap();
    hole.write_all_at(&[1; 70001 - 65536], 65536).unwrap();
    pair.copy_theirs();
    for name in ["data", "hole"] {
        for more in [
            "",
            ",cache.direct=off",
            ",cache.direct=on",
            ",file.cache.direct=on",
        ] {
            let options = format!("driver=raw,file.driver=file,file.filename={name}{more}");
            pair.same_reading(&["map", "--output=json", "--image-opts", &options]);
            pair.same_reading(&["map", "--image-opts", &options]);
        }
    }
}

/// An image that was being written when everything stopped.
fn dirty(pair: &Pair) {
    pair.prepare(&[&[
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "lazy_refcounts=on",
        "image",
        "64M",
    ]]);
    let killed = std::process::Command::new("qemu-io")
        .args([
            "-c",
            "write -P 0x2a 0 128k",
            "-c",
            "flush",
            "-c",
            "sigraise 9",
            "image",
        ])
        .current_dir(pair.theirs())
        .output()
        .unwrap();
    assert!(!killed.status.success());
    pair.copy_theirs();
}

#[test]
fn what_was_repaired_on_opening_is_told() {
    if !reference_is_there() {
        return;
    }
    for args in [
        &["amend", "-o", "compat=0.10", "image"][..],
        &["snapshot", "-c", "s", "image"],
        &["resize", "image", "65M"],
        &["bitmap", "--add", "image", "b"],
        &["check", "image"],
        &["info", "image"],
    ] {
        let pair = Pair::new();
        dirty(&pair);
        let (ours, theirs) = pair.run_both(args);
        assert_eq!(ours.stderr, theirs.stderr, "{args:?}");
        assert_eq!(ours.status, theirs.status, "{args:?}");
    }
}

#[test]
fn all_findings_are_told_before_what_was_repaired() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    dirty(&pair);
    // An entry that QEMU's check cannot put right, and ours does by giving its data up.
    poke(
        &pair,
        "image",
        0x40000 + 8,
        &0x8000_0000_0006_0200u64.to_be_bytes(),
    );
    let merged = |program: &str, folder: std::path::PathBuf| {
        let script = format!("exec {program} check -r all image 2>&1");
        let outcome = std::process::Command::new("sh")
            .args(["-c", &script])
            .current_dir(folder)
            .output()
            .unwrap();
        String::from_utf8(outcome.stdout).unwrap()
    };
    for printed in [
        merged(env!("CARGO_BIN_EXE_image-tool"), pair.ours()),
        merged("qemu-img", pair.theirs()),
    ] {
        let (findings, repaired) = printed.split_once("The following inconsistencies").unwrap();
        assert!(
            findings.contains("ERROR offset=60200: Data cluster"),
            "{printed}"
        );
        assert!(
            findings.contains("Rebuilding refcount structure"),
            "{printed}"
        );
        assert!(!repaired.contains("ERROR offset"), "{printed}");
        assert!(
            repaired.contains("Double checking the fixed image"),
            "{printed}"
        );
    }
}

#[test]
fn too_many_snapshots_can_be_removed_and_the_check_says_so() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&["qemu-img create -q -f qcow2 -o compat=0.10 image 64M"]);
    poke(&pair, "image", 64, &(1u64 << 20).to_be_bytes());
    poke(&pair, "image", 60, &65600u32.to_be_bytes());
    poke(&pair, "image", (1 << 20) + 40 * 65600, &[0]);
    pair.same(&["info", "image"]);
    pair.same(&["check", "image"]);
}

#[test]
fn a_snapshots_name_ends_where_a_c_string_does() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&[
        "qemu-img create -q -f qcow2 image 64M",
        "qemu-img snapshot -c before-after image",
    ]);
    let table = u64::from_be_bytes(
        fs::read(pair.theirs().join("image")).unwrap()[64..72]
            .try_into()
            .unwrap(),
    );
    // Behind the fixed fields, the extra data and the id.
    poke(&pair, "image", table + 40 + 24 + 1 + 6, &[0]);
    let listed = pair.same(&["snapshot", "-l", "image"]);
    assert!(listed.stdout.contains("before") && !listed.stdout.contains("after"));
}

#[test]
fn an_encrypted_image_is_described_and_nothing_else() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    let create = |options: &str, name: &str| {
        let secret = "secret,id=s,data=abc";
        pair.prepare(&[&[
            "qemu-img", "create", "-q", "--object", secret, "-f", "qcow2", "-o", options, name,
            "1M",
        ]]);
    };
    create("encrypt.format=aes,encrypt.key-secret=s", "aes");
    for (options, name) in [
        ("", "default"),
        (
            ",encrypt.cipher-alg=serpent-256,encrypt.hash-alg=sha512",
            "serpent",
        ),
        (
            ",encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256",
            "essiv",
        ),
    ] {
        let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
        create(&format!("{luks}{options}"), name);
    }
    for name in ["aes", "default", "serpent", "essiv"] {
        pair.same_reading(&["info", name]);
        pair.same_reading(&["info", "--output=json", name]);
        for args in [
            &["check", name][..],
            &["check", "-r", "all", name],
            &["map", name],
            &["measure", name],
            &["compare", name, name],
            &["convert", name, "copy"],
            &["dd", &format!("if={name}"), "of=copy"],
            &["snapshot", "-l", name],
            &["snapshot", "-c", "s", name],
            &["resize", name, "2M"],
            &["rebase", "-u", "-b", "", name],
            &["amend", "-o", "compat=0.10", name],
            &["bitmap", "--add", name, "b"],
            &["bench", "-c", "1", name],
        ] {
            let before = fs::read(pair.ours().join(name)).unwrap();
            let (ours, theirs) = pair.run_both(args);
            assert_eq!(ours.status, theirs.status, "{args:?}");
            assert!(
                ours.stderr.contains("encrypted"),
                "{args:?}: {}",
                ours.stderr
            );
            assert!(
                fs::read(pair.ours().join(name)).unwrap() == before,
                "{args:?}"
            );
            assert!(!pair.ours().join("copy").exists(), "{args:?}");
        }
    }
}

#[test]
fn what_is_shared_is_not_written() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&["qemu-img create -q -f qcow2 image 1M"]);
    pair.same(&["check", "-U", "-r", "all", "image"]);
    let node = "driver=qcow2,file.filename=image,force-share=on";
    pair.same(&["resize", "--image-opts", node, "2M"]);
}

#[test]
fn the_driver_of_plain_files_is_raw_without_a_format() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.same(&["create", "-f", "file", "image", "1M"]);
    pair.same_image("image", "raw");
    pair.same(&["create", "-f", "file", "-o", "help"]);
    pair.same(&["create", "-f", "file", "-o", "help", "image"]);
    pair.same(&["convert", "-f", "raw", "-O", "file", "image", "copy"]);
    pair.same(&["dd", "-f", "raw", "-O", "file", "if=image", "of=other"]);
    pair.same(&["info", "-f", "file", "image"]);
    pair.same(&["map", "-f", "file", "--output=json", "image"]);
}

#[test]
fn what_does_not_go_together_is_refused_in_the_same_words() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&[
        "qemu-img create -q -f raw raw 1M",
        "qemu-img create -q -f qcow2 image 1M",
    ]);
    for args in [
        &[
            "convert", "-f", "raw", "-O", "qcow2", "-l", "s", "raw", "copy",
        ][..],
        &[
            "convert", "-O", "qcow2", "-l", "s", "image", "image", "copy",
        ],
        &[
            "convert",
            "-n",
            "--target-image-opts",
            "-O",
            "raw",
            "image",
            "driver=raw,file.filename=raw",
        ],
        &["rebase", "-f", "raw", "-b", "image", "raw"],
        &["rebase", "-u", "-f", "raw", "-b", "image", "raw"],
        &[
            "rebase", "-u", "-f", "raw", "-b", "image", "-F", "qcow2", "raw",
        ],
        &["info", "--object", "secret", "image"],
        &["info", "--object", "secret,id=s,data=x", "image"],
        &["bench", "-n", "-c", "1", "image"],
        &["bench", "-i", "native", "-c", "1", "image"],
        &["bench", "-n"],
        &["bench", "-n", "nothing"],
    ] {
        pair.same(args);
    }
}

/// The header up to the end of the backing file's name, or of the list of extensions.
fn header(image: &Path) -> Vec<u8> {
    let bytes = fs::read(image).unwrap();
    let number = |at: usize, len: usize| {
        bytes[at..at + len]
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    };
    let end = match number(8, 8) {
        0 => 512,
        name => name + number(16, 4),
    };
    bytes[..end].to_vec()
}

#[test]
fn a_header_lies_as_the_references_does() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    let long = "n".repeat(700);
    pair.same(&[
        "create", "-q", "-u", "-f", "qcow2", "-b", "short", "-F", "raw", "image", "1M",
    ]);
    for change in [
        &["rebase", "-u", "-b", "shorter", "-F", "qcow2", "image"][..],
        &["rebase", "-u", "-b", &long, "-F", "raw", "image"],
        &["rebase", "-u", "-b", "n", "-F", "raw", "image"],
        &["amend", "-o", "lazy_refcounts=on", "image"],
        &["amend", "-o", "compat=0.10,lazy_refcounts=off", "image"],
        &["amend", "-o", "compat=1.1", "image"],
        &["rebase", "-u", "-b", "", "image"],
        &["rebase", "-u", "-b", &long, "-F", "qcow2", "image"],
    ] {
        pair.same(change);
        assert!(
            header(&pair.ours().join("image")) == header(&pair.theirs().join("image")),
            "{change:?}"
        );
    }
    let data = "data_file=data,lazy_refcounts=on";
    pair.same(&["create", "-q", "-f", "qcow2", "-o", data, "image", "1M"]);
    assert!(header(&pair.ours().join("image")) == header(&pair.theirs().join("image")));
}

#[test]
fn headers_are_the_same_for_all_sizes_of_clusters() {
    if !reference_is_there() {
        return;
    }
    for size in ["512", "2k", "4k", "8k", "64k", "2M"] {
        for compat in ["0.10", "1.1"] {
            let pair = Pair::new();
            let options = format!("cluster_size={size},compat={compat}");
            pair.same(&["create", "-q", "-f", "qcow2", "-o", &options, "image", "1M"]);
            let options = format!("{options},backing_file=image,backing_fmt=qcow2");
            pair.same(&["create", "-q", "-f", "qcow2", "-o", &options, "above"]);
            for name in ["image", "above"] {
                let [ours, theirs] = [pair.ours(), pair.theirs()].map(|side| {
                    let mut header = fs::read(side.join(name)).unwrap();
                    header.truncate(512);
                    header
                });
                assert_eq!(ours, theirs, "{name}, {options}");
            }
        }
    }
}

#[test]
fn the_first_block_of_a_data_file_is_stored() {
    if !reference_is_there() {
        return;
    }
    for options in ["data_file=data", "data_file=data,data_file_raw=on"] {
        let pair = Pair::new();
        pair.same(&["create", "-q", "-f", "qcow2", "-o", options, "image", "6M"]);
        let [ours, theirs] = [pair.ours(), pair.theirs()]
            .map(|side| pair.run_ours_in(&side, &["map", "-f", "raw", "--output=json", "data"]));
        assert_eq!(ours, theirs, "{options}");
    }
}
