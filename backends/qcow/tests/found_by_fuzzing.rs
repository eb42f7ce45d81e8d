//! Hostile images that a fuzzer made, each reduced to what was wrong with it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod peer;

use peer::medium::Medium;
use qcow::{CheckResult, CreateOptions, Format, Image, OpenOptions, Preallocation, Repair};

const CLUSTER: u64 = 4096;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

fn writable() -> OpenOptions {
    OpenOptions::new(Format::Qcow2).writable(true)
}

/// An image with data at its beginning.
fn image() -> Medium {
    let medium = Medium::silent().created(&CreateOptions {
        cluster_size: CLUSTER,
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    });
    let image = medium.open(&writable());
    image.write_at(0, &[1; 4 * CLUSTER as usize]).unwrap();
    image.close().unwrap();
    medium
}

fn checked(medium: &Medium, repair: Repair) -> CheckResult {
    let options = OpenOptions::new(Format::Qcow2)
        .for_check(true)
        .writable(repair != Repair::None);
    let image = medium.open(&options);
    let result = image.check(repair).unwrap();
    image.close().unwrap();
    result
}

fn word(medium: &Medium, offset: u64) -> u64 {
    let at = offset as usize;
    u64::from_be_bytes(medium.state().bytes[at..at + 8].try_into().unwrap())
}

fn set_word(medium: &Medium, offset: u64, value: u64) {
    let at = offset as usize;
    medium.state().bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// Where the first L2 table is.
fn l2_table(medium: &Medium) -> u64 {
    word(medium, word(medium, 40)) & !COPIED
}

#[test]
fn a_compressed_cluster_at_an_impossible_offset_is_not_repaired_by_clearing_its_flag() {
    let medium = image();
    set_word(
        &medium,
        l2_table(&medium),
        COPIED | COMPRESSED | 0x3fff_ffff_ffff_ff03,
    );
    assert!(checked(&medium, Repair::None).corruptions > 0);

    let left = checked(&medium, Repair::All).corruptions;

    assert_eq!(left, checked(&medium, Repair::None).corruptions);
    assert!(left > 0);
}

#[test]
fn a_refcount_table_full_of_the_same_block_does_not_keep_a_check_for_ever() {
    // Each entry leads to the same block of 2048 counts, or to none.
    let entries = (1 << 20) / 8;
    let check = |is_full: bool| {
        let medium = image();
        let table = 16 * CLUSTER;
        let block = word(&medium, word(&medium, 48));
        {
            let state = &mut *medium.state();
            state.bytes.resize(table as usize, 0);
            for number in 0..entries {
                let entry = if is_full || number == 0 { block } else { 0 };
                state.bytes.extend(entry.to_be_bytes());
            }
            state.bytes[48..56].copy_from_slice(&table.to_be_bytes());
            state.bytes[56..60].copy_from_slice(&((1u32 << 20) / CLUSTER as u32).to_be_bytes());
        }
        let before = time_of_this_thread();
        let found = checked(&medium, Repair::None);
        (found.corruptions, time_of_this_thread() - before)
    };

    let (_, empty) = check(false);
    let (found, full) = check(true);

    assert!(found >= entries - 1);
    // Looking at all counts for each entry would take a thousand times as long.
    assert!(
        full < 100 * empty,
        "{full} ns, and without blocks {empty} ns"
    );
}

/// How long the processor has worked for this thread, in nanoseconds, whatever else it did meanwhile.
fn time_of_this_thread() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn refcounts_of_a_version_2_image_stay_16_bits_wide() {
    let medium = Medium::silent().created(&CreateOptions {
        version: 2,
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    });
    let image = medium.open(&writable());

    let refused = image.set_refcount_bits(8).unwrap_err();

    assert_eq!(refused.kind(), qcow::ErrorKind::Unsupported);
    image.set_refcount_bits(16).unwrap();
    image.close().unwrap();
    assert_eq!(checked(&medium, Repair::None).corruptions, 0);
}

#[test]
fn a_table_behind_a_damaged_entry_is_not_repaired_as_if_it_had_been_counted() {
    let medium = image();
    let (table, data) = (
        l2_table(&medium),
        word(&medium, l2_table(&medium)) & !COPIED,
    );
    // Compressed, and flagged as no compressed cluster may be; the way to it has reserved bits.
    set_word(&medium, table, COPIED | COMPRESSED | data);
    set_word(&medium, word(&medium, 40), COPIED | table | 1);

    let left = checked(&medium, Repair::All).corruptions;

    assert_eq!(left, checked(&medium, Repair::None).corruptions);
    assert_eq!(left, 1);
}

#[test]
fn a_table_longer_than_a_refcount_block_describes_is_allocated() {
    let medium = Medium::silent().created(&CreateOptions {
        cluster_size: 512,
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    });
    let image = medium.open(&writable());

    // Its L1 table takes 1024 clusters, and a refcount block describes 256.
    image.resize(2 << 30, qcow::Preallocation::Off).unwrap();
    image.write_at((2 << 30) - 512, &[7; 512]).unwrap();
    image.close().unwrap();

    let found = checked(&medium, Repair::None);
    assert_eq!(
        (found.corruptions, found.leaks),
        (0, 0),
        "{:?}",
        found.messages
    );
}

#[test]
fn an_image_without_any_count_keeps_a_refcount_table_when_counts_get_another_width() {
    let medium = image();
    let table = word(&medium, 48);
    set_word(&medium, table, 0);
    let image = medium.open(&writable());
    image.set_refcount_bits(32).unwrap();

    // The table can be too small; what counts is that the write ends.
    let _ = image.write_at(0, &[2; 8 * CLUSTER as usize]);
    drop(image);
    let clusters = word(&medium, 56) >> 32;
    assert!(clusters >= 1);
}

#[test]
fn refcounts_get_another_width_though_the_old_table_leads_far_beyond_the_file() {
    let medium = image();
    // For clusters that the file does not have. Counts of all clusters up to there would take terabytes.
    let second_entry = word(&medium, 48) + 8;
    set_word(&medium, second_entry, 1 << 62);
    let image = medium.open(&writable());

    image.set_refcount_bits(32).unwrap();

    image.close().unwrap();
    assert!(checked(&medium, Repair::None).is_sound());
}

#[test]
fn the_bit_that_says_zeroes_without_subclusters_says_nothing_with_them() {
    let medium = Medium::silent().created(&CreateOptions {
        cluster_size: 16 << 10,
        extended_l2: true,
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    });
    let image = medium.open(&writable());
    image.write_at(0, &[7; 512]).unwrap();
    image.close().unwrap();
    let entry = l2_table(&medium);
    set_word(&medium, entry, word(&medium, entry) | 1);
    assert!(checked(&medium, Repair::None).is_sound());

    let image = medium.open(&writable());
    let mut data = [0; 512];
    image.read_at(0, &mut data).unwrap();
    assert_eq!(data, [7; 512]);
    image.write_at(4096, &[8; 512]).unwrap();
    image.close().unwrap();

    assert!(checked(&medium, Repair::None).is_sound());
}

#[test]
fn one_table_for_all_of_a_large_disk_is_not_looked_through_in_one_go() {
    // 4 Mi entries of L1, all leading to the same table, of which each cluster reads as zeroes.
    let entries = (32 << 20) / 8;
    let medium = Medium::silent().created(&CreateOptions {
        cluster_size: 512,
        ..CreateOptions::new(Format::Qcow2, entries * 64 * 512)
    });
    let (l1, l2): (u64, u64) = (64 << 20, 32 << 20);
    set_word(&medium, 40, l1);
    {
        let mut state = medium.state();
        state.bytes.resize(l1 as usize, 0);
        for entry in 0..64 {
            state.bytes[l2 as usize + entry * 8 + 7] = 1;
        }
        for _ in 0..entries {
            state.bytes.extend(l2.to_be_bytes());
        }
    }
    let image = medium.open(&OpenOptions::new(Format::Qcow2));

    let extent = image.map(0, image.virtual_size()).unwrap();

    assert!(extent.zero && extent.length < image.virtual_size() / 100);
}

#[test]
fn a_file_that_is_nearly_all_hole_is_mapped_at_once() {
    // 2^41 bytes, of which the first few are there.
    let file = tempfile::NamedTempFile::new().unwrap();
    let options = CreateOptions {
        cluster_size: 512,
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    };
    qcow::create(file.path(), &options).unwrap();
    let options = OpenOptions::new(Format::Qcow2).writable(true);
    let image = Image::open(file.path(), &options).unwrap();
    image.write_at(0, &[1; 512]).unwrap();
    image.close().unwrap();
    file.as_file().set_len(1 << 41).unwrap();

    let image = Image::open(file.path(), &OpenOptions::new(Format::Qcow2)).unwrap();
    let start = std::time::Instant::now();
    let extent = image.map(0, 1 << 20).unwrap();

    assert!(extent.data && extent.length == 512);
    assert!(start.elapsed().as_secs() < 2, "{:?}", start.elapsed());
}

#[test]
fn what_a_smaller_overlay_left_behind_its_end_is_no_zero_cluster_of_version_2() {
    let below = Medium::with(vec![0x42; 64 << 10]);
    let below = std::sync::Arc::new(below.open(&OpenOptions::new(Format::Raw)));
    let medium = Medium::silent().created(&CreateOptions {
        cluster_size: 512,
        backing_file: Some("below".into()),
        backing_format: Some(Format::Raw),
        ..CreateOptions::new(Format::Qcow2, 32 << 10)
    });
    let image = medium.open(&writable()).over(below);
    image.write_at(16 << 10, &[1; 4096]).unwrap();
    // Zeroes where the data was: nothing of what is below shows there.
    image.resize(8 << 10, Preallocation::Off).unwrap();
    image.set_version(2).unwrap();
    image.resize(32 << 10, Preallocation::Off).unwrap();

    let mut bytes = vec![9; 24 << 10];
    image.read_at(8 << 10, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    image.write_at(16 << 10, &[2; 512]).unwrap();
    image.close().unwrap();
    let found = checked(&medium, Repair::None);
    assert!(found.is_sound() && found.leaks == 0, "{found:?}");
}

#[test]
fn what_tables_list_behind_the_end_is_no_part_of_a_larger_disk() {
    let medium = image();
    // Data in the second cluster, and a disk that ends before it.
    let end = CLUSTER - 512;
    medium.state().bytes[24..32].copy_from_slice(&end.to_be_bytes());
    let image = medium.open(&writable());
    assert_eq!(image.virtual_size(), end);

    image.resize(1 << 20, Preallocation::Off).unwrap();

    let mut disk = vec![0xee; 1 << 20];
    image.read_at(0, &mut disk).unwrap();
    assert!(disk[..end as usize].iter().all(|byte| *byte == 1));
    assert!(disk[end as usize..].iter().all(|byte| *byte == 0));
    image.close().unwrap();
    let found = checked(&medium, Repair::None);
    assert_eq!((found.corruptions, found.leaks), (0, 0), "{found:?}");
}

/// The first extension begins 9 bytes behind the last known field.
#[test]
fn a_header_whose_length_is_no_multiple_of_8_is_written_as_one() {
    let medium = image();
    {
        let mut state = medium.state();
        state.bytes[100..104].copy_from_slice(&113u32.to_be_bytes());
        state.bytes[112..400].fill(0);
        let unknown = [
            0x12, 0x34, 0x56, 0x78, 0, 0, 0, 5, b'h', b'e', b'l', b'l', b'o',
        ];
        state.bytes[113..113 + unknown.len()].copy_from_slice(&unknown);
    }

    let disk = medium.open(&writable());
    disk.bitmap_add("b", None, true).unwrap();
    disk.set_lazy_refcounts(true).unwrap();
    disk.close().unwrap();

    let disk = medium.open(&writable());
    let bitmaps = disk.info().unwrap().qcow2.unwrap().bitmaps;
    assert_eq!(bitmaps.len(), 1);
    disk.close().unwrap();
    assert_eq!(checked(&medium, Repair::None).corruptions, 0);
    let header = medium.state().bytes[..512].to_vec();
    assert!(header.windows(5).any(|bytes| bytes == b"hello"));
    assert_eq!(header[100..104], 120u32.to_be_bytes());
}
