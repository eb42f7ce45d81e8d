//! The other verbs against qemu-img: the same words, statuses, JSON and content.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fs;

use pair::{Pair, must, reference_is_there};

/// Images of many kinds.
fn sources(pair: &Pair) {
    pair.prepare(&[
        &["qemu-img", "create", "-q", "-f", "raw", "a.raw", "9000000"],
        &[
            "qemu-io",
            "-f",
            "raw",
            "-c",
            "write -P 1 0 100k",
            "-c",
            "write -P 2 1M 1234567",
            "-c",
            "write -z 2M 300k",
            "a.raw",
        ],
        &["sh", "-c", "printf hello > tiny"],
        &["qemu-img", "create", "-q", "-f", "qcow2", "base", "8M"],
        &[
            "qemu-io",
            "-f",
            "qcow2",
            "-c",
            "write -P 3 64k 1M",
            "-c",
            "write -P 4 5M 1k",
            "-c",
            "write -z 6M 1M",
            "-c",
            "write -P 0 3M 128k",
            "base",
        ],
        &[
            "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "mid", "10M",
        ],
        &[
            "qemu-io",
            "-f",
            "qcow2",
            "-c",
            "write -P 8 3M 200k",
            "-c",
            "write -P 9 9M 64k",
            "mid",
        ],
        &[
            "qemu-img", "create", "-q", "-f", "qcow2", "-b", "mid", "-F", "qcow2", "top", "12M",
        ],
        &[
            "qemu-io",
            "-f",
            "qcow2",
            "-c",
            "write -P 5 0 70k",
            "-c",
            "write -z 512k 128k",
            "-c",
            "write -P 6 11M 1M",
            "-c",
            "discard 5M 64k",
            "top",
        ],
        &["qemu-img", "snapshot", "-c", "first", "top"],
        &["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", "top"],
        &[
            "qemu-img",
            "convert",
            "-q",
            "-c",
            "-O",
            "qcow2",
            "top",
            "compressed",
        ],
        &[
            "qemu-img",
            "convert",
            "-q",
            "-O",
            "qcow2",
            "-o",
            "extended_l2=on",
            "top",
            "extended",
        ],
        &[
            "qemu-io",
            "-f",
            "qcow2",
            "-c",
            "write 0 2k",
            "-c",
            "write 70k 3k",
            "-c",
            "write -z 16k 16k",
            "extended",
        ],
        &[
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "preallocation=metadata",
            "metadata",
            "1M",
        ],
        &[
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "data_file=data",
            "external",
            "1M",
        ],
        &[
            "qemu-io",
            "-f",
            "qcow2",
            "-c",
            "write 0 128k",
            "-c",
            "write 512k 64k",
            "external",
        ],
        &[
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "compat=0.10",
            "v2",
            "3M",
        ],
        &["qemu-io", "-f", "qcow2", "-c", "write -P 1 100k 1M", "v2"],
        &["qemu-img", "create", "-q", "-f", "qcow2", "none", "0"],
        &[
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=512",
            "small",
            "1M",
        ],
        &[
            "qemu-io",
            "-f",
            "qcow2",
            "-c",
            "write -P 1 1k 100k",
            "-c",
            "write -P 2 700k 1k",
            "small",
        ],
    ]);
}

const ALL: [&str; 13] = [
    "a.raw",
    "tiny",
    "base",
    "mid",
    "top",
    "compressed",
    "extended",
    "metadata",
    "external",
    "v2",
    "none",
    "small",
    "data",
];

#[test]
fn map_shows_the_same_extents() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    for image in ALL {
        pair.same_reading(&["map", image]);
        pair.same_reading(&["map", "--output=json", image]);
        pair.same_reading(&["map", "--output=json", "-s", "70k", "-l", "3M", image]);
        pair.same_reading(&["map", "--start-offset=100", "--max-l", "5000", image]);
    }
    pair.same_reading(&["map", "-s", "x", "base"]);
    pair.same_reading(&["map", "-l", "x", "base"]);
    pair.same_reading(&["map", "--output=json", "-s", "20M", "base"]);
}

#[test]
fn measure_gives_the_same_sizes() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    for image in ALL {
        for target in [
            &["-O", "raw"][..],
            &["-O", "qcow2"],
            &["-O", "qcow2", "--output=json"],
            &["-O", "qcow2", "-o", "cluster_size=4k,refcount_bits=64"],
            &["-O", "qcow2", "-o", "extended_l2=on"],
            &["-O", "qcow2", "-o", "preallocation=falloc"],
            &["-O", "qcow2", "-o", "backing_file=x,backing_fmt=raw"],
        ] {
            let args: Vec<_> = ["measure"]
                .iter()
                .chain(target)
                .copied()
                .chain([image])
                .collect();
            pair.same_reading(&args);
        }
    }
    for size in ["0", "1", "1k", "1.5G", "64T", "1E", "7E", "x"] {
        for format in ["raw", "qcow2"] {
            pair.same_reading(&["measure", "-O", format, "--size", size]);
        }
    }
    for line in [
        "measure",
        "measure a b",
        "measure --size 1G a",
        "measure -l x --size 1G",
        "measure -O foo base",
        "measure -O qcow2 -o foo=1 base",
        "measure -O qcow2 -o cluster_size=3 base",
        "measure -O qcow2 -o preallocation=foo base",
        "measure -O qcow2 -l first top",
        "measure -O qcow2 -l nope top",
        "measure -O qcow2 -o size=1G",
        "measure -O qcow2 --size 1G -o cluster_size=512,refcount_bits=64",
    ] {
        pair.same_reading(&line.split(' ').collect::<Vec<_>>());
    }
}

#[test]
fn compare_finds_the_same_difference() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    for first in ALL {
        for second in ALL {
            pair.same_reading(&["compare", first, second]);
            pair.same_reading(&["compare", "-s", first, second]);
        }
    }
    for line in [
        "compare",
        "compare base",
        "compare base nope",
        "compare -q base mid",
        "compare -f raw -F raw base mid",
        "compare -f foo base mid",
        "compare -T foo base mid",
        "compare --image-opts -f raw base mid",
        "compare -U top compressed",
    ] {
        pair.same_reading(&line.split(' ').collect::<Vec<_>>());
    }
}

#[test]
fn resize_changes_the_same() {
    if !reference_is_there() {
        return;
    }
    let images = [
        ("a.raw", "raw"),
        ("base", "qcow2"),
        ("mid", "qcow2"),
        ("extended", "qcow2"),
        ("small", "qcow2"),
    ];
    for (image, format) in images {
        let pair = Pair::new();
        sources(&pair);
        for args in [
            &["+1M"][..],
            &["--preallocation=metadata", "+2M"],
            &["-1M"],
            &["--shrink", "-1M"],
            &["-q", "20M"],
            &["--shrink", "5M"],
            &["--preallocation=full", "5M"],
            &["--prealloc=full", "6M"],
            &["--preallocation=falloc", "7M"],
            &["--shrink", "1000448"],
            &["+1"],
            &["-100M"],
            &["x"],
            &["1E"],
        ] {
            if format == "raw" && args.contains(&"1E") {
                continue;
            }
            let (size, options) = args.split_last().unwrap();
            let args: Vec<_> = ["resize", "-f", format]
                .iter()
                .chain(options)
                .copied()
                .chain([image, size])
                .collect();
            pair.same(&args);
            pair.same_image(image, format);
        }
    }
    let pair = Pair::new();
    sources(&pair);
    pair.same(&["resize", "a.raw", "20M"]);
    pair.same(&["resize", "a", "b", "c"]);
    pair.same(&["resize", "--preallocation=foo", "base", "20M"]);
}

#[test]
fn snapshots_are_made_applied_and_deleted_alike() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    let steps: &[&[&str]] = &[
        &["snapshot", "-c", "second", "top"],
        &["snapshot", "top"],
        &["snapshot", "-a", "first", "top"],
        &["snapshot", "-d", "second", "top"],
        &["snapshot", "-c", "third", "top"],
        &["snapshot", "-q", "-a", "1", "top"],
        &["snapshot", "-d", "nope", "top"],
        &["snapshot", "-a", "nope", "top"],
        &["snapshot", "-d", "first", "top"],
        &["snapshot", "-d", "third", "top"],
        &["snapshot", "-c", "v2", "v2"],
        &["snapshot", "-a", "v2", "v2"],
        &["snapshot", "-c", "a", "extended"],
        &["snapshot", "-d", "a", "extended"],
    ];
    for step in steps {
        let (ours, theirs) = pair.run_both(step);
        let undated = |text: &str| {
            text.lines()
                .filter(|line| !line.contains(":"))
                .collect::<Vec<_>>()
                .join("\n")
        };
        assert_eq!(ours.status, theirs.status, "{step:?}: {ours:?} {theirs:?}");
        assert_eq!(ours.stderr, theirs.stderr, "{step:?}");
        assert_eq!(undated(&ours.stdout), undated(&theirs.stdout), "{step:?}");
        for image in ["top", "v2", "extended"] {
            pair.same_image(image, "qcow2");
        }
    }
    pair.same_reading(&["snapshot", "-l", "top"]);
    pair.same_reading(&["snapshot", "-U", "--list", "v2"]);
    for line in [
        "snapshot",
        "snapshot -c a -d b base",
        "snapshot -U -c x base",
        "snapshot -l -f raw a.raw",
        "snapshot -f raw -c x a.raw",
        "snapshot -f raw -a x a.raw",
        "snapshot -f raw -d x a.raw",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
    }
}

#[test]
fn rebase_keeps_the_content() {
    if !reference_is_there() {
        return;
    }
    for args in [
        &["rebase", "-b", "", "top"][..],
        &["rebase", "-b", "base", "-F", "qcow2", "top"],
        &["rebase", "-b", "a.raw", "-F", "raw", "top"],
        &[
            "rebase", "-p", "-q", "-c", "-b", "a.raw", "-F", "raw", "top",
        ],
        &["rebase", "-b", "v2", "-F", "qcow2", "mid"],
        &["rebase", "-b", "mid", "-F", "qcow2", "compressed"],
        &["rebase", "-b", "a.raw", "-F", "raw", "extended"],
        &["rebase", "-b", "tiny", "-F", "raw", "top"],
    ] {
        let pair = Pair::new();
        sources(&pair);
        let image = args.last().unwrap();
        must(
            "before",
            &pair.ours(),
            &["qemu-img", "convert", "-O", "raw", image, "before.raw"],
        );
        pair.same(args);
        pair.same_image(image, "qcow2");
        must(
            "after",
            &pair.ours(),
            &["qemu-img", "compare", "-F", "raw", image, "before.raw"],
        );
    }
    let pair = Pair::new();
    sources(&pair);
    for line in [
        "rebase",
        "rebase top",
        "rebase -b nope -F qcow2 top",
        "rebase -b base top",
        "rebase -u -b foo -F foo top",
        "rebase -u -b foo top",
        "rebase -u -b foo -F qcow2 top",
        "rebase -u -b mid -F qcow2 top",
        "rebase -u top",
        "rebase -t foo -b x top",
        "rebase -T foo -b x top",
        "rebase -c -b base -F qcow2 -f raw a.raw",
        "rebase -u -b base -F qcow2 -f raw a.raw",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
    }
}

#[test]
fn commit_moves_the_same_content() {
    if !reference_is_there() {
        return;
    }
    for args in [
        &["commit", "mid"][..],
        &["commit", "top"],
        &["commit", "-d", "top"],
        &["commit", "-q", "-p", "-t", "unsafe", "top"],
        &["commit", "-b", "base", "top"],
        &["commit", "-b", "mid", "top"],
        &["commit", "base"],
        &["commit", "-b", "nope", "top"],
        &["commit", "-t", "foo", "top"],
        &["commit", "-r", "x", "top"],
    ] {
        let pair = Pair::new();
        sources(&pair);
        pair.prepare(&[&["qemu-img", "snapshot", "-d", "first", "top"]]);
        pair.same(args);
        for image in ["base", "mid", "top"] {
            pair.same_image(image, "qcow2");
        }
        let map = |side: &std::path::Path| {
            must("map", side, &["qemu-img", "map", "--output=json", "top"])
                .matches("\"depth\": 0")
                .count()
        };
        assert_eq!(
            map(&pair.ours()) == 0,
            map(&pair.theirs()) == 0,
            "{args:?}: what remains in the overlay"
        );
    }
}

#[test]
fn dd_copies_the_same_range() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    for line in [
        "dd if=base of=x",
        "dd -f raw if=tiny of=x",
        "dd bs=1M count=3 skip=1 if=top of=x",
        "dd bs=100 count=33 if=base of=x",
        "dd bs=64k skip=1000 if=base of=x",
        "dd -U -f qcow2 -O raw if=compressed of=x",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
        assert!(
            fs::read(pair.ours().join("x")).unwrap() == fs::read(pair.theirs().join("x")).unwrap(),
            "{line}"
        );
    }
    for line in [
        "dd -O qcow2 if=top of=x",
        "dd -O qcow2 bs=1M count=3 skip=1 if=base of=x",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
        pair.same_image("x", "qcow2");
    }
    for line in [
        "dd",
        "dd if=base",
        "dd foo",
        "dd foo=1",
        "dd bs=0 if=base of=y",
        "dd bs=x if=base of=y",
        "dd count=x if=base of=y",
        "dd skip=x if=base of=y",
        "dd -O foo if=base of=y",
        "dd if=nope of=y",
        "dd if=base of=/nope/y",
        "dd if=base of=base",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
    }
}

#[test]
fn bench_announces_the_same_and_writes_the_same() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    for line in [
        "bench -c 100 -f raw a.raw",
        "bench -c 100 -d 1 -f qcow2 top",
        "bench -w -c 300 -S 8k -o 512 --pattern 7 -f qcow2 base",
        "bench -w -c 100 -d 10 --flush-interval=20 -s 64k -f raw a.raw",
        "bench -w -c 100 -d 10 --flush-interval=20 --no-drain -t none -i io_uring -f qcow2 top",
    ] {
        let (ours, theirs) = pair.run_both(&line.split(' ').collect::<Vec<_>>());
        let untimed = |text: &str| {
            text.lines()
                .filter(|line| !line.starts_with("Run "))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (ours.status, &ours.stderr),
            (theirs.status, &theirs.stderr),
            "{line}"
        );
        assert_eq!(untimed(&ours.stdout), untimed(&theirs.stdout), "{line}");
    }
    pair.same_image("a.raw", "raw");
    pair.same_image("base", "qcow2");
    for line in [
        "bench",
        "bench -w --flush-interval=1 -f raw a.raw",
        "bench --flush-interval=64 -f raw a.raw",
        "bench -c 0 a.raw",
        "bench -d 0 a.raw",
        "bench -s 0 a.raw",
        "bench -S x a.raw",
        "bench -o x a.raw",
        "bench -t x a.raw",
        "bench -i x a.raw",
        "bench --pattern 256 a.raw",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
    }
}

#[test]
fn amend_changes_the_same() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    pair.prepare(&[
        &["qemu-img", "snapshot", "-d", "first", "top"],
        &["qemu-img", "snapshot", "-c", "kept", "small"],
    ]);
    for line in [
        "amend -o compat=v2 base",
        "amend -o compat=1.1,lazy_refcounts=on base",
        "amend -q -p -o lazy_refcounts=off base",
        "amend -o compat=0.10 top",
        "amend -o compat=v3 top",
        "amend -o refcount_bits=1 base",
        "amend -o refcount_bits=64 base",
        "amend -o refcount_bits=16,compat=v2 base",
        "amend -o size=9M base",
        "amend -o refcount_bits=32 small",
        "amend -o refcount_bits=1 small",
        "amend -o compat=v3 v2",
        "amend -o refcount_bits=8 extended",
        "amend -o backing_file=mid,backing_fmt=qcow2 top",
        "amend",
        "amend base",
        "amend -o foo=1 base",
        "amend -o cluster_size=1k base",
        "amend -o preallocation=full base",
        "amend -o compat=foo base",
        "amend -o refcount_bits=3 base",
        "amend -o refcount_bits=8,compat=v2 mid",
        "amend -o lazy_refcounts=on,compat=v2 mid",
        "amend -o compat=0.10 extended",
        "amend -o compat=0.10 external",
        "amend -o backing_file=x top",
        "amend -o data_file=foo base",
        "amend -o data_file_raw=on base",
        "amend -o data_file=data external",
        "amend -o , base",
        "amend -t foo -o size=1M base",
        "amend -o size=1 a b",
        "amend -o help -f qcow2",
        "amend -o help base",
        "amend -o help -f raw",
        "amend -o size=1 -f raw a.raw",
        "amend -o help a.raw",
    ] {
        let args: Vec<_> = line.split(' ').collect();
        pair.same(&args);
        let changed = args
            .last()
            .filter(|image| ALL.contains(image) && !image.ends_with("raw"));
        if let Some(image) = changed {
            pair.same_image(image, "qcow2");
        }
    }
}

#[test]
fn bitmaps_are_changed_and_copied_alike() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    for line in [
        "bitmap --add base b0",
        "bitmap --add -g 32k base b1",
        "bitmap --add --disable base b2",
        "bitmap --add base b0",
        "bitmap --add -g 3 base b3",
        "bitmap --add -g 100 base b3",
        "bitmap --remove base nope",
        "bitmap --clear base nope",
        "bitmap --enable base nope",
        "bitmap --disable base nope",
        "bitmap --merge nope base b0",
        "bitmap --merge b0 base nope",
        "bitmap -g 3 --clear base b0",
        "bitmap -F raw --clear base b0",
        "bitmap -b x --clear base b0",
        "bitmap",
        "bitmap --add",
        "bitmap --add base",
        "bitmap --enable base b2",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
        pair.same_image("base", "qcow2");
    }
    // Writes are recorded, by whichever tool; then merged, cleared, removed, copied.
    for side in [pair.ours(), pair.theirs()] {
        must(
            "write",
            &side,
            &[
                "qemu-io",
                "-f",
                "qcow2",
                "-c",
                "write -P 1 1M 100k",
                "-c",
                "write 7M 1k",
                "base",
            ],
        );
    }
    pair.same(&[
        "bench",
        "-w",
        "-c",
        "1",
        "-o",
        "3M",
        "--pattern",
        "5",
        "-f",
        "qcow2",
        "-t",
        "foo",
        "base",
    ]);
    for line in [
        "bitmap --merge b0 base b1",
        "bitmap --add --disable --merge b1 base b4",
        "bitmap --clear base b0",
        "bitmap --remove base b2",
        "convert --bitmaps -O qcow2 base copy",
        "convert --bitmaps -c -O qcow2 -o compression_type=zstd base copy2",
        "bitmap --add copy other",
        "bitmap --merge b1 -b base -F qcow2 copy other",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
        pair.same_image("base", "qcow2");
        for side in [pair.ours(), pair.theirs()] {
            // Each tool reads the sizes of the other's bitmaps alike.
            must(
                "measure",
                &side,
                &["qemu-img", "measure", "-O", "qcow2", "base"],
            );
        }
    }
    for image in ["copy", "copy2"] {
        pair.same_image(image, "qcow2");
    }
    // The bits themselves: both merged bitmaps, seen by the reference.
    let dirty = |side: &std::path::Path, bitmap: &str| {
        let server = format!("driver=qcow2,file.filename={}", side.join("base").display());
        bits(side, &server, bitmap)
    };
    for bitmap in ["b0", "b1", "b4"] {
        assert_eq!(
            dirty(&pair.ours(), bitmap),
            dirty(&pair.theirs(), bitmap),
            "{bitmap}"
        );
    }
}

/// The dirty ranges of a bitmap as the reference's NBD server shows them.
fn bits(folder: &std::path::Path, image: &str, bitmap: &str) -> String {
    let socket = folder.join("nbd.sock");
    let _ = fs::remove_file(&socket);
    let mut server = std::process::Command::new("qemu-nbd")
        .args([
            "--image-opts",
            "-r",
            "-k",
            &socket.to_string_lossy(),
            "-B",
            bitmap,
            image,
        ])
        .spawn()
        .unwrap();
    while !socket.exists() {
        assert!(server.try_wait().unwrap().is_none(), "qemu-nbd ended early");
        std::thread::yield_now();
    }
    let export = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}",
        socket.display()
    );
    let map = must(
        "map",
        folder,
        &["qemu-img", "map", "--output=json", "--image-opts", &export],
    );
    server.wait().unwrap();
    map
}

#[test]
fn a_snapshot_is_deleted_by_its_name_and_not_by_its_id() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[
        &["qemu-img", "create", "-q", "-f", "qcow2", "a", "1M"],
        &["qemu-img", "snapshot", "-c", "kept", "a"],
    ]);

    assert_eq!(pair.same(&["snapshot", "-d", "1", "a"]).status, Some(1));
    assert_eq!(pair.same(&["snapshot", "-d", "kept", "a"]).status, Some(0));
}

#[test]
fn bitmaps_of_disks_of_different_sizes_are_not_merged() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[
        &["qemu-img", "create", "-q", "-f", "qcow2", "a", "1M"],
        &["qemu-img", "create", "-q", "-f", "qcow2", "b", "2M"],
        &["qemu-img", "bitmap", "--add", "a", "b0"],
        &["qemu-img", "bitmap", "--add", "b", "b0"],
    ]);

    let merged = pair.same(&[
        "bitmap", "--merge", "b0", "-b", "b", "-F", "qcow2", "a", "b0",
    ]);
    assert_eq!(merged.status, Some(1));
    let copied = pair.same(&["convert", "-n", "-O", "qcow2", "--bitmaps", "a", "b"]);
    assert_eq!(copied.status, Some(1));
}

#[test]
fn a_snapshot_is_not_applied_under_bitmaps() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[
        &["qemu-img", "create", "-q", "-f", "qcow2", "a", "1M"],
        &["qemu-img", "snapshot", "-c", "kept", "a"],
        &["qemu-img", "bitmap", "--add", "a", "b0"],
    ]);

    assert_eq!(pair.same(&["snapshot", "-a", "kept", "a"]).status, Some(1));
}
