//! Nothing is written over metadata, and no metadata is given up, whatever an image says: each kind of metadata against
//! each way to come upon it. The image is marked as corrupt instead, and no longer written.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod peer;

use peer::medium::Medium;
use qcow::{CreateOptions, ErrorKind, Format, Image, OpenOptions, Preallocation};

const CLUSTER: u64 = 4096;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

fn open(medium: &Medium, writable: bool) -> Image {
    let options = OpenOptions::new(Format::Qcow2)
        .writable(writable)
        .discard(qcow::Discard::Unmap);
    Image::open_storage(Box::new(medium.clone()), "hostile", &options).unwrap()
}

fn word(medium: &Medium, at: u64) -> u64 {
    u64::from_be_bytes(medium.state().bytes[at as usize..][..8].try_into().unwrap())
}

fn patch(medium: &Medium, at: u64, bytes: &[u8]) {
    let mut state = medium.state();
    let end = at as usize + bytes.len();
    if state.bytes.len() < end {
        state.bytes.resize(end, 0);
    }
    state.bytes[at as usize..end].copy_from_slice(bytes);
}

/// An image with some of everything. The second cluster of its disk has an entry in the L2 table, and so has the third,
/// in the L2 table of a snapshot only.
fn image(version: u32) -> Medium {
    let medium = Medium::default();
    let options = CreateOptions {
        version,
        cluster_size: CLUSTER,
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    };
    qcow::create_in(&medium, &options).unwrap();
    let image = open(&medium, true);
    image.write_at(0, &[1; 3 * CLUSTER as usize]).unwrap();
    image.snapshot_create("s").unwrap();
    image.write_at(0, &[2; 3 * CLUSTER as usize]).unwrap();
    if version >= 3 {
        image.bitmap_add("b", Some(512), false).unwrap();
        image.bitmap_merge("b", [(0, 1 << 20)]).unwrap();
    }
    image.close().unwrap();
    medium
}

fn l2_table(medium: &Medium) -> u64 {
    word(medium, word(medium, 40)) & OFFSET
}

/// Where the bitmaps extension says that the directory is.
fn bitmap_directory(medium: &Medium) -> u64 {
    let mut at = u64::from(u32::from_be_bytes(
        medium.state().bytes[100..104].try_into().unwrap(),
    ));
    loop {
        let head = word(medium, at);
        if head >> 32 == 0x2385_2875 {
            return word(medium, at + 24);
        }
        at += 8 + (head & 0xffff_ffff).next_multiple_of(8);
    }
}

/// The metadata of an image, by name.
fn victims(medium: &Medium, version: u32) -> Vec<(&'static str, u64)> {
    let snapshots = word(medium, 64);
    let mut victims = vec![
        ("L1 table", word(medium, 40)),
        ("L2 table", l2_table(medium)),
        ("refcount table", word(medium, 48)),
        ("refcount block", word(medium, word(medium, 48)) & OFFSET),
        ("snapshot table", snapshots),
        ("L1 table of a snapshot", word(medium, snapshots)),
    ];
    if version >= 3 {
        victims.push(("bitmap directory", bitmap_directory(medium)));
    }
    victims
}

fn set_refcount(medium: &Medium, host: u64, count: u16) {
    let block = word(medium, word(medium, 48)) & OFFSET;
    patch(medium, block + host / CLUSTER * 2, &count.to_be_bytes());
}

/// What is done is refused, harms nothing, and ends all writing.
fn assert_refused(
    medium: &Medium,
    version: u32,
    context: &str,
    act: impl FnOnce(&Image) -> qcow::Result<()>,
) {
    let metadata: Vec<(&str, u64)> = victims(medium, version);
    let content = || -> Vec<Vec<u8>> {
        let bytes = &medium.state().bytes;
        let cluster = |at: u64| bytes[at as usize..(at + CLUSTER) as usize].to_vec();
        metadata.iter().map(|(_, at)| cluster(*at)).collect()
    };
    // A file ends with the last byte of a table, not with its last cluster.
    let end = (medium.state().bytes.len()).next_multiple_of(CLUSTER as usize);
    medium.state().bytes.resize(end, 0);
    let before = content();
    let image = open(medium, true);

    let refused = act(&image);

    let refused = refused.and_then(|()| image.flush()).expect_err(context);
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{context}: {refused}");
    let again = image.write_at(0, &[9; 512]).expect_err(context);
    assert_eq!(again.kind(), ErrorKind::ReadOnly, "{context}: {again}");
    drop(image);
    assert!(content() == before, "{context}: metadata was changed");
    let marked = open(medium, false).info().unwrap().qcow2.unwrap().corrupt;
    assert_eq!(marked, version >= 3, "{context}");
}

/// The entry of the second cluster of the disk, and its refcount, for each thing it may wrongly lead to.
fn for_each_entry(mut each: impl FnMut(&Medium, u32, String)) {
    for version in [2, 3] {
        for (name, victim) in victims(&image(version), version) {
            for (kind, flags) in [("own", COPIED), ("shared", 0), ("compressed", COMPRESSED)] {
                let medium = image(version);
                patch(
                    &medium,
                    l2_table(&medium) + 8,
                    &(flags | victim).to_be_bytes(),
                );
                let context = format!("version {version}, {kind} cluster in the {name}");
                each(&medium, version, context);
            }
        }
    }
}

#[test]
fn a_write_to_where_metadata_is_is_refused() {
    for_each_entry(|medium, version, context| {
        assert_refused(medium, version, &context, |image| {
            image.write_at(CLUSTER, &[7; CLUSTER as usize])
        });
    });
    for_each_entry(|medium, version, context| {
        assert_refused(medium, version, &context, |image| {
            image.write_at(CLUSTER / 2, &[7; CLUSTER as usize])
        });
    });
}

#[test]
fn a_discard_gives_up_no_metadata() {
    for_each_entry(|medium, version, context| {
        assert_refused(medium, version, &context, |image| {
            image.discard(CLUSTER, CLUSTER)
        });
    });
}

#[test]
fn zeroes_in_the_place_of_a_cluster_give_up_no_metadata() {
    for_each_entry(|medium, version, context| {
        assert_refused(medium, version, &context, |image| {
            image.write_zeroes(CLUSTER, CLUSTER, true)
        });
    });
}

#[test]
fn a_compressed_write_gives_up_no_metadata() {
    for_each_entry(|medium, version, context| {
        assert_refused(medium, version, &context, |image| {
            image.write_compressed(CLUSTER, &[7; CLUSTER as usize])
        });
    });
}

#[test]
fn a_shrink_gives_up_no_metadata() {
    // A snapshot of version 2 forbids it for other reasons.
    for_each_entry(|medium, version, context| {
        if version >= 3 {
            assert_refused(medium, version, &context, |image| {
                image.resize(CLUSTER, Preallocation::Off)
            });
        }
    });
}

#[test]
fn emptying_an_overlay_gives_up_no_metadata() {
    for_each_entry(|medium, version, context| {
        assert_refused(medium, version, &context, Image::make_empty);
    });
}

#[test]
fn nothing_is_allocated_where_metadata_without_a_refcount_is() {
    for version in [2, 3] {
        for (name, victim) in victims(&image(version), version) {
            let broken = || {
                let medium = image(version);
                set_refcount(&medium, victim, 0);
                medium
            };
            let context = format!("version {version}, no refcount for the {name}");
            let mut rng = peer::Rng(1);
            // Does not compress.
            let large: Vec<u8> = (0..200 << 10).map(|_| rng.next() as u8).collect();
            assert_refused(&broken(), version, &format!("{context}, write"), |image| {
                image.write_at(64 << 10, &large)
            });
            assert_refused(
                &broken(),
                version,
                &format!("{context}, compressed write"),
                |image| image.write_compressed(64 << 10, &large),
            );
            assert_refused(
                &broken(),
                version,
                &format!("{context}, new snapshot"),
                |image| image.snapshot_create("t"),
            );
            assert_refused(
                &broken(),
                version,
                &format!("{context}, deleted snapshot"),
                |image| image.snapshot_delete("s"),
            );
            if version >= 3 {
                // Of several changes, those that meet the damage come late.
                let medium = broken();
                let read = || {
                    let bytes = &medium.state().bytes[victim as usize..];
                    bytes[..bytes.len().min(64)].to_vec()
                };
                let before = read();
                let image = open(&medium, true);
                let mut names = (0..200).map(|index| format!("{index}"));
                let refused = names.find_map(|name| image.bitmap_add(&name, None, true).err());
                let refused = refused.expect(&context);
                assert_eq!(refused.kind(), ErrorKind::Corrupt, "{context}: {refused}");
                if name != "refcount block" && name != "refcount table" {
                    assert!(read() == before, "{context}: it was changed");
                }
            }
        }
    }
}

#[test]
fn a_snapshot_that_leads_to_metadata_is_neither_applied_nor_deleted() {
    for version in [2, 3] {
        for (name, victim) in victims(&image(version), version) {
            let hostile = || {
                let medium = image(version);
                let l1 = word(&medium, word(&medium, 64));
                let l2 = word(&medium, l1) & OFFSET;
                patch(&medium, l2 + 8, &victim.to_be_bytes());
                medium
            };
            let context = format!("version {version}, a snapshot in the {name}");
            assert_refused(&hostile(), version, &context, |image| {
                image.snapshot_delete("s")
            });
            assert_refused(&hostile(), version, &context, |image| {
                image.snapshot_apply("s")
            });
        }
    }
}

#[test]
fn a_bitmap_that_leads_to_metadata_is_not_removed() {
    for (name, victim) in victims(&image(3), 3) {
        let hostile = || {
            let medium = image(3);
            let table = word(&medium, bitmap_directory(&medium));
            patch(&medium, table, &victim.to_be_bytes());
            medium
        };
        let context = format!("a bitmap in the {name}");
        assert_refused(&hostile(), 3, &context, |image| image.bitmap_remove("b"));
        assert_refused(&hostile(), 3, &context, |image| image.bitmap_clear("b"));
    }
}

#[test]
fn the_file_is_not_cut_off_before_its_last_table() {
    let medium = image(3);
    // The L1 table lies behind all that has a refcount.
    let l1 = word(&medium, 40);
    let content = medium.state().bytes[l1 as usize..(l1 + CLUSTER) as usize].to_vec();
    patch(&medium, 1 << 20, &content);
    patch(&medium, 40, &(1u64 << 20).to_be_bytes());
    let image = open(&medium, true);

    let refused = image.resize(CLUSTER, Preallocation::Off).unwrap_err();

    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
    assert!(word(&medium, 1 << 20) & OFFSET != 0, "the table is gone");
    assert!(open(&medium, false).info().unwrap().qcow2.unwrap().corrupt);
}

#[test]
fn a_larger_refcount_table_is_not_written_over_a_table() {
    let medium = Medium::default();
    let options = CreateOptions {
        cluster_size: 512,
        ..CreateOptions::new(Format::Qcow2, 10 << 20)
    };
    qcow::create_in(&medium, &options).unwrap();
    // The refcount table has room for 64 blocks of 256 clusters, and the L1 table lies right behind those.
    let (l1, beyond) = (word(&medium, 40), 64 * 256 * 512);
    let content = medium.state().bytes[l1 as usize..].to_vec();
    patch(&medium, beyond, &content);
    patch(&medium, 40, &beyond.to_be_bytes());
    let image = open(&medium, true);

    let refused = image.write_at(0, &vec![7; 10 << 20]).unwrap_err();

    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
    assert!(open(&medium, false).info().unwrap().qcow2.unwrap().corrupt);
}

#[test]
fn tables_beyond_the_end_of_the_file_are_not_written() {
    for field in [40, 48] {
        let medium = image(3);
        patch(&medium, field, &(1u64 << 47).to_be_bytes());
        let options = OpenOptions::new(Format::Qcow2).writable(true);

        let refused = Image::open_storage(Box::new(medium), "hostile", &options);

        let refused = refused.map(drop).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
    }
}

#[test]
fn a_snapshot_of_an_impossible_disk_is_not_applied() {
    let medium = image(3);
    // Bitmaps would have to follow the size of the disk first.
    let image = open(&medium, true);
    image.bitmap_remove("b").unwrap();
    image.close().unwrap();
    let snapshots = word(&medium, 64);
    // The second word of the extra data is the size of the disk.
    patch(&medium, snapshots + 48, &(1u64 << 62).to_be_bytes());
    let image = open(&medium, true);

    let refused = image
        .snapshot_apply("s")
        .expect_err("the disk of 2^62 bytes");

    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
    image.write_at(0, &[3; 512]).unwrap();
}
