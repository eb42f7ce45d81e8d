//! Images with damaged tables: `convert --salvage` rescues what qemu-img rescues, other verbs end as it ends, and a
//! repair is a way out.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use pair::{Pair, must, reference_is_there};

/// A table whose entry is damaged.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Table {
    L1,
    L2,
    Refcounts,
}

/// Makes one entry of a table what it must not be.
fn damage(image: &Path, table: Table, index: u64, entry: u64) {
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    let file = File::options().read(true).write(true).open(image).unwrap();
    let word = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let is_extended = word(72) & 16 != 0;
    let at = match table {
        Table::L1 => word(40) + index * 8,
        Table::L2 if is_extended => (word(word(40)) & OFFSET) + index * 16,
        Table::L2 => (word(word(40)) & OFFSET) + index * 8,
        Table::Refcounts => word(48) + index * 8,
    };
    file.write_all_at(&entry.to_be_bytes(), at).unwrap();
}

/// What is done to which table: unaligned offsets, reserved bits, offsets beyond the file, what cannot be decompressed.
const DAMAGES: [(Table, u64, u64); 12] = [
    (Table::L2, 3, 0x8000_0000_0005_0200),
    (Table::L2, 3, 0x8000_0000_0005_0002),
    (Table::L2, 3, 0x8100_0000_0005_0000),
    (Table::L2, 3, 0x8000_000f_0000_0000),
    (Table::L2, 3, 0x8000_0000_0005_0001),
    (Table::L2, 3, 0x4000_0000_0008_0000),
    (Table::L2, 3, 0x4000_00ff_ffff_0000),
    (Table::L2, 3, 0x7fff_0000_0005_0000),
    (Table::L1, 0, 0x8000_0000_0004_0200),
    (Table::L1, 0, 0x8000_0000_0004_0002),
    (Table::L1, 0, 0x8000_000f_0000_0000),
    (Table::Refcounts, 0, 0x2_0200),
];

/// The one that leads past the end of the file: qemu-img reads zeroes there, without a message.
const PAST_THE_END: (Table, u64, u64) = DAMAGES[3];

/// `x` damaged in both folders, over or without `below`.
fn damaged(pair: &Pair, (table, index, entry): (Table, u64, u64)) {
    for side in [pair.ours(), pair.theirs()] {
        fs::copy(side.join("sound"), side.join("x")).unwrap();
        damage(&side.join("x"), table, index, entry);
    }
}

fn same_file(pair: &Pair, name: &str) -> bool {
    fs::read(pair.ours().join(name)).unwrap() == fs::read(pair.theirs().join(name)).unwrap()
}

fn kinds() -> Vec<String> {
    let write = "qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 1M 3M' sound";
    let below = "qemu-img create -q -f raw below 4M && qemu-io -f raw -c 'write -P 7 0 4M' below";
    [
        "qemu-img create -q -f qcow2 sound 4M",
        "qemu-img create -q -f qcow2 -o compat=0.10 sound 4M",
        "qemu-img create -q -f qcow2 -o extended_l2=on sound 4M",
        "qemu-img create -q -f qcow2 -b below -F raw sound 4M",
    ]
    .map(|create| format!("{below} && {create} && {write}"))
    .into()
}

#[test]
fn what_can_be_read_is_rescued() {
    if !reference_is_there() {
        return;
    }
    for kind in kinds() {
        let pair = Pair::new();
        pair.make(&[&kind]);
        for what in DAMAGES {
            damaged(&pair, what);
            let lines = [
                "convert --salvage -O raw x out",
                "convert --salvage -q -O raw x out",
                "convert --salvage -p -m 1 -O raw x out",
                "convert --salvage -O raw -S 0 x out",
            ];
            // The ways of saying it are one thing, and the damages another.
            let ways = if what == DAMAGES[0] { lines.len() } else { 1 };
            for line in &lines[..ways] {
                let (ours, theirs) = pair.run_both(&line.split(' ').collect::<Vec<_>>());
                assert_eq!(ours.status, Some(0), "{kind} {what:x?} {line}: {ours:?}");
                assert_eq!(theirs.status, Some(0), "{kind} {what:x?} {line}");
                assert!(same_file(&pair, "out"), "{kind} {what:x?} {line}");
                let is_said = |text: &str| text.contains("warning: error while reading");
                let expected =
                    is_said(&theirs.stderr) || (what == PAST_THE_END && !line.contains("-q"));
                assert_eq!(is_said(&ours.stderr), expected, "{ours:?}");
                damaged(&pair, what);
            }
            if what != DAMAGES[0] {
                continue;
            }
            let compressed = ["convert", "--salvage", "-c", "-O", "qcow2", "x", "out"];
            let (ours, _) = pair.run_both(&compressed);
            assert_eq!(ours.status, Some(0), "{kind} {what:x?}: {ours:?}");
            pair.same_image("out", "qcow2");
        }
    }
}

#[test]
fn other_verbs_end_as_those_of_qemu_img() {
    if !reference_is_there() {
        return;
    }
    for kind in kinds() {
        let pair = Pair::new();
        pair.make(&[&kind]);
        for what in DAMAGES {
            for line in [
                "convert -O raw x out",
                "dd if=x of=out",
                "map x",
                "compare x sound",
                "measure -O qcow2 x",
                "check x",
                "bench -c 1 x",
                "info x",
                "rebase -f qcow2 -b below -F raw x",
                "bitmap --add x bits",
            ] {
                let is_version_2 = kind.contains("0.10");
                if is_version_2 && line.starts_with("bitmap") {
                    continue;
                }
                damaged(&pair, what);
                let (ours, theirs) = pair.run_both(&line.split(' ').collect::<Vec<_>>());
                // What writes allocates and looks ahead in other ways; it ends, and says why if it does not succeed.
                let writes = line.starts_with("rebase") || line.starts_with("bitmap");
                let ends =
                    ours.status == Some(0) || (ours.status == Some(1) && !ours.stderr.is_empty());
                let reads = ["convert", "dd", "compare"]
                    .iter()
                    .any(|verb| line.starts_with(verb));
                if what == PAST_THE_END && reads {
                    let status = if line.starts_with("compare") { 4 } else { 1 };
                    assert_eq!(ours.status, Some(status), "{kind} {line}: {ours:?}");
                    assert!(ours.stderr.contains("past the end of the file"), "{ours:?}");
                    continue;
                }
                assert!(
                    ours.status == theirs.status || (writes && ends),
                    "{kind} {what:x?} {line}: {ours:?} {theirs:?}"
                );
                if line.starts_with("convert") && ours.status == Some(0) {
                    assert!(same_file(&pair, "out"), "{kind} {what:x?} {line}");
                }
            }
        }
    }
}

#[test]
fn a_repair_is_a_way_out_and_says_what_is_lost() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.make(&[&kinds()[0]]);
    for (entry, lost) in [
        (0x8000_0000_0005_0200, true),
        (0x8000_0000_0008_0002, false),
    ] {
        damaged(&pair, (Table::L2, 3, entry));
        let ours = pair.ours();
        must(
            "rescue",
            &ours,
            &["sh", "-c", "qemu-img convert --salvage -q -O raw x rescued"],
        );
        let repaired = pair.run_ours(&["check", "-r", "all", "x"]);
        assert_eq!(repaired.status, Some(0), "{repaired:?}");
        assert_eq!(repaired.stderr.contains("its data is lost"), lost);
        must("check", &ours, &["qemu-img", "check", "-q", "x"]);
        must(
            "compare",
            &ours,
            &["qemu-img", "compare", "-q", "x", "rescued"],
        );
    }
}

#[test]
fn one_bad_entry_of_a_large_image_costs_one_cluster() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.make(&[
        "qemu-img create -q -f qcow2 -o preallocation=metadata sound 600M",
        "qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 511M 2M' -c 'write -P 3 599M 1M' sound",
    ]);
    damaged(&pair, (Table::L2, 3, 0x8000_0000_0005_0200));
    let (ours, theirs) = pair.run_both(&["convert", "--salvage", "-O", "raw", "x", "out"]);
    assert_eq!((ours.status, theirs.status), (Some(0), Some(0)), "{ours:?}");
    let [ours, theirs] = [pair.ours(), pair.theirs()].map(|side| side.join("out"));
    must(
        "compare",
        &pair.ours(),
        &["cmp".as_ref(), ours.as_os_str(), theirs.as_os_str()],
    );
}

#[test]
fn data_past_the_end_of_the_file_is_not_copied_as_zeroes() {
    let folder = tempfile::tempdir().unwrap();
    let tool = |line: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_image-tool"))
            .args(line.split(' '))
            .current_dir(folder.path())
            .output();
        let output = output.unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), error)
    };
    fs::write(folder.path().join("raw"), [7; 1 << 20]).unwrap();
    assert_eq!(tool("convert -f raw -O qcow2 raw image").0, Some(0));
    let image = fs::OpenOptions::new()
        .write(true)
        .open(folder.path().join("image"))
        .unwrap();
    let first_cluster = image.metadata().unwrap().len() - (1 << 20);

    // A part of the last cluster may be missing: it is zeroes.
    image.set_len(first_cluster + (1 << 20) - 512).unwrap();
    assert_eq!(tool("convert -O raw image copy"), (Some(0), String::new()));

    // Seven and a half of 16 clusters are left.
    image.set_len(first_cluster + 15 * 32768).unwrap();
    let message = "image-tool: error while reading at byte 524288: the data lies past the end of the file 'image'\n";
    for verb in [
        "convert -O raw image new",
        "convert -p -q -O qcow2 -c image new",
    ] {
        assert_eq!(tool(verb), (Some(1), message.to_owned()), "{verb}");
        assert!(!folder.path().join("new").exists(), "{verb}");
    }
    let (status, warning) = tool("convert --salvage -O raw image new");
    assert_eq!(status, Some(0), "{warning}");
    assert_eq!(
        warning,
        "image-tool: warning: error while reading offset 524288: 524288 bytes lie past the end of the image's file\n"
    );
    let copy = fs::read(folder.path().join("new")).unwrap();
    assert!(copy[..15 * 32768].iter().all(|&byte| byte == 7));
    assert!(copy[15 * 32768..].iter().all(|&byte| byte == 0));
    assert_eq!(copy.len(), 1 << 20);
}
