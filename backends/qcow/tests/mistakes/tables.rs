//! What tables say: never followed out of bounds or into other metadata, and accepted as far as the format allows.

use qcow::{ErrorKind, Image, Repair, TableFault};

use crate::peer::medium::Medium;
use crate::peer::{check, qemu_img, text};
use crate::{MIB, be64, patch, plain, read_only, refused, writable};

#[test]
fn an_image_cut_off_anywhere_opens_or_is_refused_but_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    Image::open(&path, &writable())
        .unwrap()
        .write_at(0, &[1; 100_000])
        .unwrap();
    let whole = std::fs::read(&path).unwrap();
    for len in (0..1200)
        .step_by(5)
        .chain((1200..whole.len()).step_by(4097))
    {
        let medium = Medium::with(whole[..len].to_vec());
        if let Ok(image) = Image::open_storage(Box::new(medium), "cut", &read_only()) {
            let _ = image.read_at(0, &mut vec![0; 200_000]);
            let _ = image.check(Repair::None);
        }
    }
}

#[test]
fn tables_that_overlap_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    // The L1 table is where the refcount table is.
    let refcount_table = be64(&path, 48);
    patch(&path, 40, &refcount_table.to_be_bytes());
    refused(&path, &writable(), ErrorKind::Corrupt, "overlaps");
}

#[test]
fn a_write_that_would_hit_metadata_marks_the_image_corrupt_instead() {
    for victim in [0u64, 65536, 131_072, 196_608] {
        let dir = tempfile::tempdir().unwrap();
        let path = plain(dir.path());
        Image::open(&path, &writable())
            .unwrap()
            .write_at(0, &[1; 65536])
            .unwrap();
        let l2 = be64(&path, be64(&path, 40)) & 0x00ff_ffff_ffff_fe00;
        let entry = 1 << 63 | victim;
        // Cluster 0 is the header; offset 0 in an entry means none, so the entry after the first is taken for it.
        patch(&path, l2, &entry.to_be_bytes());
        let before = std::fs::read(&path).unwrap();
        if victim == 0 {
            continue;
        }
        let image = Image::open(&path, &writable()).unwrap();
        let error = image.write_at(0, &[2; 512]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert_eq!(
            image.write_at(MIB, &[2; 512]).unwrap_err().kind(),
            ErrorKind::ReadOnly
        );
        drop(image);
        let after = std::fs::read(&path).unwrap();
        assert!(
            before[512..] == after[512..],
            "nothing but the header was written"
        );
        assert!(
            Image::open(&path, &read_only())
                .unwrap()
                .info()
                .unwrap()
                .qcow2
                .unwrap()
                .corrupt
        );
        refused(&path, &writable(), ErrorKind::Corrupt, "Image is corrupt");
    }
}

/// An image whose first cluster is written, and then has this L2 entry.
fn with_entry(dir: &std::path::Path, entry: u64) -> std::path::PathBuf {
    let path = plain(dir);
    Image::open(&path, &writable())
        .unwrap()
        .write_at(0, &[1; 65536])
        .unwrap();
    let l2 = be64(&path, be64(&path, 40)) & 0x00ff_ffff_ffff_fe00;
    patch(&path, l2, &entry.to_be_bytes());
    path
}

#[test]
fn an_unaligned_offset_in_a_table_is_corruption() {
    let dir = tempfile::tempdir().unwrap();
    let path = with_entry(dir.path(), 1 << 63 | 0x50200);
    let image = Image::open(&path, &read_only()).unwrap();
    let error = image.read_at(0, &mut [0; 512]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    // What is beside it can be read all the same, and asked about.
    let mut rest = [9; 512];
    image.read_at(65536, &mut rest).unwrap();
    assert_eq!(rest, [0; 512]);
    assert!(image.check(Repair::None).unwrap().corruptions > 0);
}

#[test]
fn reserved_bits_in_a_table_are_ignored_by_readers_and_stop_writers() {
    for bit in [1 << 57, 1 << 3] {
        let dir = tempfile::tempdir().unwrap();
        let path = with_entry(dir.path(), 1 << 63 | 0x50000 | bit);
        let image = Image::open(&path, &writable()).unwrap();
        let mut data = [0; 512];
        image.read_at(0, &mut data).unwrap();
        assert_eq!(data, [1; 512]);
        assert!(image.check(Repair::None).unwrap().corruptions > 0);
        let error = image.write_at(0, &[2; 512]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        image.read_at(0, &mut data).unwrap();
        assert_eq!(data, [1; 512]);
    }
}

#[test]
fn damage_is_met_where_it_is_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    let image = Image::open(&path, &writable()).unwrap();
    image.write_at(0, &[1; 4 * 65536]).unwrap();
    image.close().unwrap();
    let l2 = be64(&path, be64(&path, 40)) & 0x00ff_ffff_ffff_fe00;
    patch(&path, l2 + 16, &(1u64 << 63 | 0x50200).to_be_bytes());
    let image = Image::open(&path, &read_only()).unwrap();
    let extent = image.map(0, MIB).unwrap();
    assert_eq!((extent.data, extent.length), (true, 2 * 65536));
    assert!(image.map(2 * 65536, MIB - 2 * 65536).is_err());
    assert!(image.map(3 * 65536, 65536).unwrap().data);
}

#[test]
fn refcount_tables_of_any_legal_size_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=512",
        text(&path),
        "16G",
    ]);
    let image = Image::open(&path, &writable()).unwrap();
    image.write_at(15 << 30, &[1; 4096]).unwrap();
    image.close().unwrap();
    check(&path);
    // As some tools write it: one table of 2 MiB clusters for a large disk.
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=2M,preallocation=metadata",
        text(&path),
        "1T",
    ]);
    Image::open(&path, &writable()).unwrap().close().unwrap();
}

#[test]
fn a_compressed_cluster_cannot_grow_beyond_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    let image = Image::open(&path, &writable()).unwrap();
    image.write_compressed(0, &[5; 65536]).unwrap();
    image.close().unwrap();
    // The same data, in an image that says its clusters are smaller: what it inflates to is then too much.
    patch(&path, 20, &15u32.to_be_bytes());
    let image = Image::open(&path, &read_only().for_check(true)).unwrap();
    let _ = image.read_at(0, &mut [0; 32768]);
}

#[test]
fn a_snapshot_whose_l1_table_is_nowhere_is_told_from_a_damaged_image() {
    for (field, value, fault) in [
        (8, &0x1000_0000u32.to_be_bytes()[..], TableFault::TooLarge),
        (0, &12_345u64.to_be_bytes()[..], TableFault::Misplaced),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = plain(dir.path());
        Image::open(&path, &writable())
            .unwrap()
            .snapshot_create("kept")
            .unwrap();
        patch(&path, be64(&path, 64) + field, value);
        let kind = ErrorKind::SnapshotL1(fault);
        let says = format!("Snapshot L1 table {fault}");
        let of_snapshot = read_only().snapshot(Some("kept".into()));
        refused(&path, &of_snapshot, kind, &says);
        let image = Image::open(&path, &writable()).unwrap();
        let refusals = [
            image.snapshot_apply("kept"),
            image.snapshot_delete("kept"),
            image.set_version(2),
        ];
        for refusal in refusals {
            assert_eq!(refusal.unwrap_err().kind(), kind);
        }
        // The disk itself is as good as before.
        image.write_at(0, &[1; 512]).unwrap();
        image.close().unwrap();
    }
}
