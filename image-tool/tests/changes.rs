//! What `create`, `amend` and `rebase` leave behind, byte for byte where scripts look at bytes, against qemu-img.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fs;

use pair::{Pair, must, reference_is_there};

#[test]
fn new_files_are_as_long_as_the_references() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    for options in [
        "cluster_size=65536",
        "cluster_size=2M",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "compat=0.10",
        "extended_l2=on",
        "data_file=data",
        "data_file=data,data_file_raw=on",
        "data_file=data,preallocation=metadata",
        "data_file=data,preallocation=falloc",
    ] {
        for size in ["512", "5M", "70M"] {
            let _ = fs::remove_file(pair.ours().join("data"));
            let _ = fs::remove_file(pair.theirs().join("data"));
            pair.same(&["create", "-q", "-f", "qcow2", "-o", options, "image", size]);
            let lengths = |side: std::path::PathBuf| {
                ["image", "data"].map(|name| fs::metadata(side.join(name)).map_or(0, |m| m.len()))
            };
            assert_eq!(
                lengths(pair.ours()),
                lengths(pair.theirs()),
                "{options} {size}"
            );
            if size == "512" {
                // QEMU writes the end of what it preallocates, which here is all of it.
                continue;
            }
            let (ours, theirs) = pair.run_both(&["map", "--output=json", "image"]);
            assert_eq!(ours, theirs, "{options} {size}");
        }
    }
}

#[test]
fn a_raw_external_data_file_is_the_disk_from_the_beginning() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    fs::write(pair.ours().join("data"), b"what was there before").unwrap();
    let create = "create -q -f qcow2 -o data_file=data,data_file_raw=on image 1M";
    assert_eq!(
        pair.run_ours(&create.split(' ').collect::<Vec<_>>()).status,
        Some(0)
    );
    assert_eq!(
        fs::read(pair.ours().join("data")).unwrap(),
        vec![0; 1 << 20]
    );
    // What others write into the raw file is read through the image, and the other way round after a resize.
    let write = ["qemu-io", "-f", "raw", "-c", "write -P 7 128k 64k", "data"];
    must("write", &pair.ours(), &write);
    assert_eq!(
        pair.run_ours(&["resize", "-q", "image", "2M"]).status,
        Some(0)
    );
    let beyond = ["qemu-io", "-f", "raw", "-c", "write -P 8 1M 64k", "data"];
    must("write", &pair.ours(), &beyond);
    for pattern in ["read -P 7 128k 64k", "read -P 8 1M 64k"] {
        let read = ["qemu-io", "-f", "qcow2", "-c", pattern, "image"];
        let out = must("read", &pair.ours(), &read);
        assert!(!out.contains("verification failed"), "{out}");
    }
    let compared = pair.run_ours(&["compare", "-f", "qcow2", "-F", "raw", "image", "data"]);
    assert_eq!(compared.stdout, "Images are identical.\n");
}

/// An overlay with zero clusters on the disk, in snapshots, and in tables that both share.
fn overlay_with_snapshots(pair: &Pair, backed: bool) {
    let io = |commands: &[&str]| {
        let mut line = vec!["qemu-io", "-f", "qcow2"];
        for command in commands {
            line.extend(["-c", command]);
        }
        line.push("image");
        must("write", &pair.theirs(), &line);
    };
    let img = |line: &str| {
        must(
            "prepare",
            &pair.theirs(),
            &line.split(' ').collect::<Vec<_>>(),
        );
    };
    img("qemu-img create -q -f qcow2 base 640M");
    must(
        "write",
        &pair.theirs(),
        &["qemu-io", "-f", "qcow2", "-c", "write -P 9 0 4M", "base"],
    );
    if backed {
        img("qemu-img create -q -f qcow2 -b base -F qcow2 image 640M");
    } else {
        img("qemu-img create -q -f qcow2 image 640M");
    }
    io(&["write -P 1 0 1M", "write -z 0 128k", "write -z 600M 64k"]);
    img("qemu-img snapshot -c first image");
    io(&["write -P 2 0 64k", "write -z 1M 1M", "write -z 512k 64k"]);
    img("qemu-img snapshot -c second image");
    img("qemu-img snapshot -c third image");
    io(&["write -P 3 64k 64k"]);
    pair.copy_theirs();
}

#[test]
fn version_2_keeps_what_every_snapshot_shows() {
    if !reference_is_there() {
        return;
    }
    for backed in [false, true] {
        let pair = Pair::new();
        overlay_with_snapshots(&pair, backed);
        let shows = |pair: &Pair, snapshot: &str| {
            let out = format!("{snapshot}.raw");
            let line = [
                "qemu-img", "convert", "-O", "raw", "-l", snapshot, "image", &out,
            ];
            must("convert", &pair.ours(), &line);
            fs::read(pair.ours().join(&out)).unwrap()
        };
        let snapshots = ["first", "second", "third"];
        let before = snapshots.map(|snapshot| shows(&pair, snapshot));
        pair.same(&["amend", "-p", "-o", "compat=0.10", "image"]);
        pair.same_image("image", "qcow2");
        assert!(
            snapshots.map(|snapshot| shows(&pair, snapshot)) == before,
            "backed: {backed}"
        );
        // Going back to one of them and forgetting it leaves nothing behind. (QEMU itself zeroes a cluster here that
        // the first snapshot shares with a zero cluster of the disk.)
        pair.same(&["snapshot", "-a", "first", "image"]);
        let line = ["qemu-img", "convert", "-O", "raw", "image", "active.raw"];
        must("convert", &pair.ours(), &line);
        assert!(fs::read(pair.ours().join("active.raw")).unwrap() == before[0]);
        for line in ["snapshot -d first image", "snapshot -d third image"] {
            pair.same(&line.split(' ').collect::<Vec<_>>());
            must("check", &pair.ours(), &["qemu-img", "check", "-q", "image"]);
        }
    }
}

#[test]
fn version_2_is_refused_for_snapshots_it_cannot_describe() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[
        &["qemu-img", "create", "-q", "-f", "qcow2", "image", "32M"],
        &["qemu-img", "snapshot", "-c", "small", "image"],
        &["qemu-img", "resize", "-q", "image", "64M"],
    ]);
    let refused = pair.same(&["amend", "-o", "compat=0.10", "image"]);
    assert_eq!(refused.status, Some(1));
    pair.same_image("image", "qcow2");
    pair.same(&["amend", "-o", "compat=0.10,size=32M", "image"]);
    pair.same_image("image", "qcow2");
}

#[test]
fn the_external_data_file_is_renamed_and_forgotten_alike() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    for line in [
        "create -q -f qcow2 -o data_file=data,data_file_raw=on image 1M",
        "amend -o data_file_raw=on image",
        "amend -o data_file_raw=off image",
        "info --output=json image",
        "amend -o data_file_raw=on image",
        "amend -o data_file=other image",
        "amend -o data_file= --image-opts driver=qcow2,data-file.filename=data,file.filename=image",
        "create -q -f qcow2 -o extended_l2=on extended 1M",
        "amend -o compat=0.10 extended",
    ] {
        let (ours, theirs) = pair.run_both(&line.split(' ').collect::<Vec<_>>());
        let facts = |text: &str| pair::without_host_sizes(text);
        assert_eq!(
            (ours.status, facts(&ours.stdout), ours.stderr),
            (theirs.status, facts(&theirs.stdout), theirs.stderr),
            "{line}"
        );
    }
}

#[test]
fn rebase_records_any_format_the_reference_knows() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[&["qemu-img", "create", "-q", "-f", "qcow2", "image", "1M"]]);
    for format in ["host_device", "vmdk", "nonsense"] {
        pair.same(&[
            "rebase",
            "-u",
            "-b",
            "/dev/elsewhere",
            "-F",
            format,
            "image",
        ]);
        let (ours, theirs) = pair.run_both(&["info", "--output=json", "image"]);
        assert_eq!(
            pair::without_host_sizes(&ours.stdout),
            pair::without_host_sizes(&theirs.stdout)
        );
    }
}

#[test]
fn shrinking_gives_back_refcount_blocks_and_the_end_of_the_file() {
    if !reference_is_there() {
        return;
    }
    for options in [
        "cluster_size=512,refcount_bits=64",
        "cluster_size=512,refcount_bits=1",
        "cluster_size=1k",
        "cluster_size=64k",
    ] {
        let pair = Pair::new();
        let create = [
            "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "image", "3M",
        ];
        let write = ["qemu-io", "-f", "qcow2", "-c", "write -P 9 0 3M", "image"];
        pair.prepare(&[&create, &write]);
        pair.same(&["resize", "--shrink", "image", "1M"]);
        pair.same_image("image", "qcow2");
        let lengths = [pair.ours(), pair.theirs()]
            .map(|side| fs::metadata(side.join("image")).unwrap().len());
        assert_eq!(lengths[0], lengths[1], "{options}");
        // What is written later finds its place.
        let grow = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", "image"];
        assert_eq!(
            pair.run_ours(&["resize", "-q", "image", "8M"]).status,
            Some(0)
        );
        must("write", &pair.ours(), &grow);
        let line = [
            "bench", "-q", "-w", "-c", "1000", "-d", "8", "-s", "4096", "-f", "qcow2", "image",
        ];
        assert_eq!(pair.run_ours(&line).status, Some(0));
        must("check", &pair.ours(), &["qemu-img", "check", "-q", "image"]);
    }
}

#[test]
fn a_snapshot_table_that_names_a_huge_l1_table_is_refused_at_once() {
    use std::os::unix::fs::FileExt;
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[
        &["qemu-img", "create", "-q", "-f", "qcow2", "image", "64M"],
        &["qemu-img", "snapshot", "-c", "kept", "image"],
    ]);
    let image = pair.ours().join("image");
    let mut at = [0; 8];
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(image)
        .unwrap();
    file.read_exact_at(&mut at, 64).unwrap();
    // The entry's number of L1 entries: two gibibytes of them.
    file.write_all_at(&0x1000_0000u32.to_be_bytes(), u64::from_be_bytes(at) + 8)
        .unwrap();
    for (line, why) in [
        (
            "amend -o compat=0.10 image",
            "Failed to turn zero into data clusters: File too large",
        ),
        (
            "snapshot -a kept image",
            "Failed to load snapshot: File too large",
        ),
        ("snapshot -d kept image", "Could not delete snapshot 'kept'"),
        (
            "convert -l kept -O raw image out",
            "Failed to load snapshot: Snapshot L1 table too large",
        ),
    ] {
        let refused = pair.run_ours(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(refused.status, Some(1), "{line}");
        for words in ["Snapshot L1 table too large", why] {
            assert!(refused.stderr.contains(words), "{refused:?}");
        }
    }
}

#[test]
fn what_an_image_has_not_is_refused_by_name() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    let old = "compat=0.10";
    pair.prepare(&[
        &["qemu-img", "create", "-q", "-f", "qcow2", "image", "1M"],
        &["qemu-img", "bitmap", "--add", "image", "bitmap"],
        &[
            "qemu-img", "create", "-q", "-f", "qcow2", "-o", old, "old", "1M",
        ],
        &["sh", "-c", "cp old corrupt; cp image corrupt"],
        &[
            "sh",
            "-c",
            r"printf '\002' | dd of=corrupt bs=1 seek=79 conv=notrunc",
        ],
    ]);
    for arguments in [
        ["amend", "-o", "backing_file=", "image"].as_slice(),
        &["amend", "-o", "backing_fmt=raw", "image"],
        &["bitmap", "--remove", "old", "bitmap"],
        &["bitmap", "--clear", "old", "bitmap"],
        &["bitmap", "--disable", "image", "none"],
        &[
            "convert",
            "--bitmaps",
            "-O",
            "qcow2",
            "-o",
            old,
            "image",
            "new",
        ],
        &["convert", "--bitmaps", "-n", "-O", "qcow2", "image", "old"],
        &["snapshot", "-c", "name", "corrupt"],
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "data_file=none/data",
            "new",
            "1M",
        ],
        &["dd", "if=image", "of=new", "count=1k"],
        &["dd", "if=image", "of=new", "skip=-1"],
        &["dd", "if=image", "of=new", "count=-1"],
    ] {
        let (ours, theirs) = pair.run_both(arguments);
        assert_eq!(
            (ours.status, &ours.stderr),
            (Some(1), &theirs.stderr),
            "{arguments:?}"
        );
    }
}
