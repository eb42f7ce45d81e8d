//! Images made to keep a check busy: it takes as long as the file deserves that there really is, not as its tables say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use qcow::{CreateOptions, Format, Image, OpenOptions, Repair};

/// What no check of these may take of the processor, which others may be using, too; an honest walk would take an hour.
const LONG: Duration = Duration::from_secs(60);
/// Entries of the largest L1 table, of 32 MiB, and of one that is large enough.
const LARGEST: u32 = 4 << 20;
const LARGE: u32 = 32 << 10;
const TABLE: u64 = 1 << 30;
const L1: u64 = 2 << 30;

/// How an image is crowded: so many snapshots, each with so many L1 entries.
struct Crowd {
    cluster_size: u64,
    snapshots: u32,
    entries: u32,
    /// Each has a table of its own.
    apart: bool,
}

/// A sparse image of that kind.
fn crowd(path: &Path, crowd: &Crowd, patch: impl Fn(&std::fs::File)) {
    let options = CreateOptions {
        cluster_size: crowd.cluster_size,
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    };
    qcow::create(path, &options).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let mut table = Vec::new();
    for index in 0..u64::from(crowd.snapshots) {
        let mut entry = [0u8; 56];
        let l1 = L1 + if crowd.apart { index << 25 } else { 0 };
        entry[..8].copy_from_slice(&l1.to_be_bytes());
        entry[8..12].copy_from_slice(&crowd.entries.to_be_bytes());
        entry[36..40].copy_from_slice(&16u32.to_be_bytes());
        table.extend(entry);
    }
    file.write_all_at(&table, TABLE).unwrap();
    file.write_all_at(&crowd.snapshots.to_be_bytes(), 60)
        .unwrap();
    file.write_all_at(&TABLE.to_be_bytes(), 64).unwrap();
    let end = if crowd.apart {
        u64::from(crowd.snapshots) << 25
    } else {
        1 << 25
    };
    file.set_len(L1 + end).unwrap();
    patch(&file);
}

fn ends_soon(path: &Path) {
    let start = processor_time();
    let options = OpenOptions::new(Format::Qcow2).for_check(true);
    let image = Image::open(path, &options).unwrap();
    let found = image.check(Repair::None).unwrap();
    assert!(!found.is_sound(), "{found:?}");
    let taken = processor_time().saturating_sub(start);
    assert!(taken < LONG, "{taken:?}");
}

/// What this process has had of the processors.
fn processor_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(now).unwrap()
}

#[test]
fn snapshots_whose_tables_are_holes_take_no_time() {
    let dir = tempfile::tempdir().unwrap();
    for (cluster_size, apart) in [(512, false), (64 << 10, false), (2 << 20, true)] {
        let path = dir.path().join("holes");
        let all = Crowd {
            cluster_size,
            snapshots: 65_536,
            entries: LARGEST,
            apart,
        };
        crowd(&path, &all, |_| {});
        ends_soon(&path);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn snapshots_that_share_one_large_table_take_as_long_as_a_few() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shared");
    let few = Crowd {
        cluster_size: 64 << 10,
        snapshots: 4096,
        entries: LARGE,
        apart: false,
    };
    crowd(&path, &few, |file| {
        // Every entry leads to the same L2 table: itself.
        let words = L1.to_be_bytes().repeat(LARGE as usize);
        file.write_all_at(&words, L1).unwrap();
    });
    ends_soon(&path);
}
