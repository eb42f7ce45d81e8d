//! Checking and repairing: what we find QEMU finds, and what we repaired QEMU finds sound and unchanged.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod peer;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use peer::{Rng, check, contents, qemu_img, qemu_io, run, text};
use qcow::{CheckResult, CreateOptions, Format, Image, OpenOptions, Repair};

const CLUSTER: u64 = 4096;

/// An image with data, compressed clusters, a snapshot and a bitmap.
fn image(dir: &Path, seed: u64) -> PathBuf {
    let path = dir.join("disk.qcow2");
    let options = CreateOptions {
        cluster_size: CLUSTER,
        ..CreateOptions::new(Format::Qcow2, 8 << 20)
    };
    qcow::create(&path, &options).unwrap();
    let image = open(&path);
    let mut rng = Rng(seed);
    for index in 0..40 {
        let offset = rng.below(8 << 20) / CLUSTER * CLUSTER;
        let len = ((rng.below(8) + 1) * CLUSTER).min((8 << 20) - offset) as usize;
        if rng.chance(30) {
            image
                .write_compressed(offset, &vec![index as u8; len])
                .unwrap();
        } else {
            image.write_at(offset, &vec![index as u8; len]).unwrap();
        }
        if index == 20 {
            image.snapshot_create("s").unwrap();
            image.bitmap_add("b", None, true).unwrap();
        }
    }
    image.close().unwrap();
    check(&path);
    path
}

fn open(path: &Path) -> Image {
    Image::open(path, &OpenOptions::new(Format::Qcow2).writable(true)).unwrap()
}

fn checked(path: &Path, repair: Repair) -> CheckResult {
    let options = OpenOptions::new(Format::Qcow2)
        .for_check(true)
        .writable(repair != Repair::None);
    let image = Image::open(path, &options).unwrap();
    let result = image.check(repair).unwrap();
    image.close().unwrap();
    result
}

fn be64(path: &Path, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    std::fs::File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, offset)
        .unwrap();
    u64::from_be_bytes(bytes)
}

fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .write_all_at(bytes, offset)
        .unwrap();
}

/// A number of qemu-img check's JSON output; fields that are 0 are not in it.
fn field(json: &str, name: &str) -> u64 {
    let key = format!("\"{name}\": ");
    json.find(&key).map_or(0, |at| {
        json[at + key.len()..]
            .chars()
            .take_while(char::is_ascii_digit)
            .collect::<String>()
            .parse()
            .unwrap()
    })
}

#[test]
fn a_check_finds_what_qemu_finds() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..25 {
        let path = image(dir.path(), seed);
        let mut rng = Rng(seed);
        // Refcounts changed at random, and flags of L2 entries.
        let block = be64(&path, be64(&path, 48));
        for _ in 0..rng.below(6) {
            patch(
                &path,
                block + rng.below(150) * 2,
                &(rng.below(3) as u16).to_be_bytes(),
            );
        }
        let ours = checked(&path, Repair::None);
        let output = run(
            "qemu-img",
            &["check", "--output=json", "-f", "qcow2", text(&path)],
        );
        let json = String::from_utf8_lossy(&output.stdout);
        let theirs = |name: &str| field(&json, name);
        assert_eq!(
            ours.corruptions,
            theirs("corruptions"),
            "seed {seed}: {:?} {json}",
            ours.messages
        );
        assert_eq!(
            ours.leaks,
            theirs("leaks"),
            "seed {seed}: {:?}",
            ours.messages
        );
        assert_eq!(
            ours.image_end_offset,
            theirs("image-end-offset"),
            "seed {seed}"
        );
        assert_eq!(ours.total_clusters, theirs("total-clusters"));
        assert_eq!(ours.allocated_clusters, theirs("allocated-clusters"));
        assert_eq!(ours.fragmented_clusters, theirs("fragmented-clusters"));
        assert_eq!(ours.compressed_clusters, theirs("compressed-clusters"));
    }
}

#[test]
fn wrong_refcounts_are_repaired_and_nothing_else_changes() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..25 {
        let path = image(dir.path(), seed);
        let before = contents(&path);
        let mut rng = Rng(seed);
        let block = be64(&path, be64(&path, 48));
        for _ in 0..6 {
            patch(
                &path,
                block + rng.below(150) * 2,
                &(rng.below(3) as u16).to_be_bytes(),
            );
        }
        let found = checked(&path, Repair::All);
        assert_eq!(
            (found.corruptions, found.leaks),
            (0, 0),
            "seed {seed}: {:?}",
            found.messages
        );
        check(&path);
        assert!(before == contents(&path));
        qemu_io(&path, &["write -P 9 0 1M".into()]);
        check(&path);
    }
}

#[test]
fn leaks_alone_are_repaired_when_that_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 3);
    let block = be64(&path, be64(&path, 48));
    let clusters = std::fs::metadata(&path).unwrap().len() / CLUSTER;
    let free: Vec<u64> = (1..clusters)
        .filter(|cluster| be64(&path, block + cluster * 2) >> 48 == 0)
        .collect();
    patch(&path, block + free[0] * 2, &[0, 1]);
    patch(&path, block + free[1] * 2, &[0, 7]);
    let found = checked(&path, Repair::None);
    assert_eq!((found.leaks, found.corruptions), (2, 0));
    let repaired = checked(&path, Repair::Leaks);
    assert_eq!((repaired.leaks, repaired.leaks_fixed), (0, 2));
    check(&path);
}

/// What a file lost at its end stays lost, and a repair must not give its place to other clusters as well.
#[test]
fn clusters_beyond_the_end_of_a_file_that_was_cut_off_keep_their_refcounts() {
    for bits in ["1", "4", "16", "64"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        let options = format!("cluster_size=64k,refcount_bits={bits}");
        qemu_img(&["create", "-f", "qcow2", "-o", &options, text(&path), "3M"]);
        qemu_io(&path, &["write -P 1 0 3M".to_owned()]);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(2 << 20).unwrap();
        let arguments = ["check", "--output=json", text(&path)];
        let theirs = run("qemu-img", &arguments).stdout;
        let lost = field(&String::from_utf8(theirs).unwrap(), "corruptions");
        assert!(lost > 10);

        assert_eq!(checked(&path, Repair::None).corruptions, lost);
        assert_eq!(checked(&path, Repair::Leaks).corruptions, lost);
        assert_eq!(checked(&path, Repair::All).corruptions, lost);

        let image = open(&path);
        image.resize(6 << 20, qcow::Preallocation::Off).unwrap();
        image.write_at(4 << 20, &vec![9; 1536 << 10]).unwrap();
        image.write_at(1900 << 10, &vec![8; 1100 << 10]).unwrap();
        image.close().unwrap();
        check(&path);
        let disk = contents(&path);
        assert!(disk[4 << 20..5632 << 10].iter().all(|byte| *byte == 9));
    }
}

#[test]
fn refcounts_are_rebuilt_from_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let damages: &[fn(&Path)] = &[
        // No table, a table somewhere else, blocks nowhere, an unaligned block, a block that is also something else, no
        // counts.
        |path| patch(path, 48, &[0; 8]),
        |path| patch(path, 56, &[0; 4]),
        |path| patch(path, be64(path, 48), &[0; 8]),
        |path| patch(path, be64(path, 48), &(1u64 << 40).to_be_bytes()),
        |path| patch(path, be64(path, 48), &0x1234u64.to_be_bytes()),
        |path| patch(path, be64(path, 48), &be64(path, 40).to_be_bytes()),
        |path| patch(path, be64(path, be64(path, 48)), &[0; 4096]),
    ];
    for (index, damage) in damages.iter().enumerate() {
        let path = image(dir.path(), index as u64);
        let before = contents(&path);
        damage(&path);
        let found = checked(&path, Repair::None);
        assert!(found.corruptions > 0, "damage {index}");
        let repaired = checked(&path, Repair::All);
        assert_eq!(
            (repaired.corruptions, repaired.leaks),
            (0, 0),
            "damage {index}: {:?}",
            repaired.messages
        );
        assert!(repaired.corruptions_fixed > 0, "damage {index}");
        let again = checked(&path, Repair::None);
        assert_eq!(
            (again.corruptions, again.leaks),
            (0, 0),
            "damage {index}: {:?}",
            again.messages
        );
        check(&path);
        assert!(before == contents(&path), "damage {index}");
        let writer = open(&path);
        writer.write_at(0, &[1; 200_000]).unwrap();
        writer.close().unwrap();
        check(&path);
    }
}

/// Where the L2 entry of a cluster of the first table is, of entries of this many bytes.
fn l2_slot(path: &Path, index: u64, entry: u64) -> u64 {
    (be64(path, be64(path, 40)) & 0x00ff_ffff_ffff_fe00) + index * entry
}

/// An image whose first eight clusters hold their own number plus one, with a snapshot of that.
fn numbered(path: &Path, options: &CreateOptions) {
    qcow::create(path, options).unwrap();
    let image = Image::open(
        path,
        &OpenOptions::new(Format::Qcow2)
            .writable(true)
            .backing(qcow::Backing::Open),
    )
    .unwrap();
    for index in 0..8 {
        let data = vec![index as u8 + 1; options.cluster_size as usize];
        image.write_at(index * options.cluster_size, &data).unwrap();
    }
    image.close().unwrap();
}

const LOST: u64 = 1 << 63 | 0x50200;

#[test]
fn an_l2_entry_that_leads_nowhere_is_given_up_by_a_repair_that_was_asked_for() {
    for (version, extended_l2) in [(2, false), (3, false), (3, true)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let options = CreateOptions {
            version,
            extended_l2,
            ..CreateOptions::new(Format::Qcow2, 1 << 20)
        };
        numbered(&path, &options);
        let entry = if extended_l2 { 16 } else { 8 };
        let before = contents(&path);
        patch(&path, l2_slot(&path, 3, entry), &LOST.to_be_bytes());
        assert!(checked(&path, Repair::None).corruptions > 0);
        let untouched = std::fs::read(&path).unwrap();
        assert!(checked(&path, Repair::Leaks).corruptions > 0);
        let entry_after = be64(&path, l2_slot(&path, 3, entry));
        assert_eq!(entry_after, LOST, "leaks alone are repaired");
        std::fs::write(&path, untouched).unwrap();

        let repaired = checked(&path, Repair::All);
        assert!(repaired.is_sound(), "{:?}", repaired.messages);
        assert!(
            repaired
                .messages
                .iter()
                .any(|message| message.contains("its data is lost")),
            "{:?}",
            repaired.messages
        );
        check(&path);
        let mut expected = before;
        expected[3 << 16..4 << 16].fill(0);
        assert!(contents(&path) == expected);
        open(&path).write_at(0, &[9; 1 << 20]).unwrap();
        check(&path);
    }
}

#[test]
fn reserved_bits_of_l2_entries_are_cleared_by_a_repair() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    numbered(&path, &CreateOptions::new(Format::Qcow2, 1 << 20));
    let before = contents(&path);
    let slot = l2_slot(&path, 3, 8);
    let entry = be64(&path, slot) | 2 | 1 << 56;
    patch(&path, slot, &entry.to_be_bytes());
    // Also if a snapshot uses the table, too.
    qemu_img(&["snapshot", "-c", "s", text(&path)]);
    assert!(checked(&path, Repair::All).is_sound());
    check(&path);
    assert!(contents(&path) == before);
    open(&path).snapshot_apply("s").unwrap();
    assert!(contents(&path) == before);
    check(&path);
}

#[test]
fn nothing_is_given_up_when_an_image_is_repaired_on_its_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    numbered(&path, &CreateOptions::new(Format::Qcow2, 1 << 20));
    let slot = l2_slot(&path, 3, 8);
    patch(&path, slot, &LOST.to_be_bytes());
    // Not closed properly.
    patch(&path, 72, &1u64.to_be_bytes());
    assert!(Image::open(&path, &OpenOptions::new(Format::Qcow2).writable(true)).is_err());
    // But for the flag that says nobody else uses what it leads to.
    assert_eq!(be64(&path, slot) & !(1 << 63), LOST & !(1 << 63));
}

#[test]
fn what_may_be_data_is_not_mended_as_a_table() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    numbered(&path, &CreateOptions::new(Format::Qcow2, 1 << 30));
    // A second L1 entry that leads to a cluster of data, which looks like a table full of damage.
    let data = be64(&path, l2_slot(&path, 5, 8)) & 0x00ff_ffff_ffff_fe00;
    patch(&path, be64(&path, 40) + 8, &(data | 1 << 63).to_be_bytes());
    let before = std::fs::read(&path).unwrap();
    checked(&path, Repair::All);
    let after = std::fs::read(&path).unwrap();
    let cluster = data as usize..data as usize + 65536;
    assert!(before[cluster.clone()] == after[cluster]);
}

#[test]
fn an_older_state_is_not_shown_in_place_of_what_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (base, path) = (dir.path().join("base"), dir.path().join("disk"));
    numbered(&base, &CreateOptions::new(Format::Qcow2, 1 << 20));
    // Version 2 has no zeroes to put there.
    let options = CreateOptions {
        version: 2,
        backing_file: Some("base".into()),
        backing_format: Some(Format::Qcow2),
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    };
    numbered(&path, &options);
    let slot = l2_slot(&path, 3, 8);
    patch(&path, slot, &LOST.to_be_bytes());
    assert!(!checked(&path, Repair::All).is_sound());
    assert_eq!(be64(&path, slot) & !(1 << 63), LOST & !(1 << 63));
}

#[test]
fn a_corrupt_image_is_writable_again_once_it_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1);
    patch(&path, 72, &2u64.to_be_bytes());
    assert!(Image::open(&path, &OpenOptions::new(Format::Qcow2).writable(true)).is_err());
    assert_eq!(checked(&path, Repair::All).corruptions, 0);
    open(&path).write_at(0, &[1; 512]).unwrap();
    check(&path);
}

#[test]
fn random_damage_never_panics_and_a_repair_ends() {
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(image(dir.path(), 5)).unwrap();
    for seed in 0..400 {
        let mut rng = Rng(seed);
        let mut bytes = whole.clone();
        for _ in 0..rng.below(8) + 1 {
            // Mostly where metadata is.
            let at = if rng.chance(80) {
                rng.below(64 << 10)
            } else {
                rng.below(bytes.len() as u64)
            } as usize;
            let value = *rng.pick(&[0, 1, 0x7f, 0x80, 0xff, rng.0 as u8]);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        let medium = peer::medium::Medium::with(bytes);
        let for_check = OpenOptions::new(Format::Qcow2)
            .for_check(true)
            .writable(true);
        if let Ok(image) = Image::open_storage(Box::new(medium.clone()), "damaged", &for_check) {
            let _ = image.check(Repair::All);
        }
        if let Ok(image) = Image::open_storage(
            Box::new(medium),
            "damaged",
            &OpenOptions::new(Format::Qcow2).writable(true),
        ) {
            let mut buf = vec![0; 100_000];
            for _ in 0..20 {
                let offset = rng.below(8 << 20);
                let len = rng.below(100_000) as usize;
                if rng.chance(50) {
                    let _ = image.read_at(offset, &mut buf[..len]);
                } else {
                    let _ = image.write_at(offset, &buf[..len]);
                }
            }
            let _ = image.snapshot_apply("s");
            let _ = image.snapshot_delete("s");
            let _ = image.bitmap_ranges("b");
            let _ = image.close();
        }
    }
}

#[test]
fn an_image_qemu_damaged_by_dying_is_repaired_on_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lazy.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "lazy_refcounts=on",
        text(&path),
        "8M",
    ]);
    // qemu-io ends without closing the image.
    let output = run(
        "qemu-io",
        &[
            "-f",
            "qcow2",
            "-c",
            "write -P 5 0 1M",
            "-c",
            "flush",
            "-c",
            "abort",
            text(&path),
        ],
    );
    assert!(!output.status.success());
    assert!(
        Image::open(&path, &OpenOptions::new(Format::Qcow2))
            .unwrap()
            .info()
            .unwrap()
            .qcow2
            .unwrap()
            .dirty
    );
    open(&path).close().unwrap();
    check(&path);
    assert!(contents(&path)[..1 << 20].iter().all(|byte| *byte == 5));
}
