//! A qcow2 image of 1 TiB with 16 GiB of clusters all over it, as a guest leaves it behind after years. Only its
//! metadata is written: the clusters are holes in the file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::content::Numbers;

const CLUSTER: u64 = 1 << 16;
const SIZE: u64 = 1 << 40;
const ALLOCATED: u64 = (16 << 30) / CLUSTER;
/// Entries of an L2 table, and the clusters it maps.
const L2_ENTRIES: u64 = CLUSTER / 8;
const L2_TABLES: u64 = SIZE / CLUSTER / L2_ENTRIES;
/// Refcounts of 16 bits in a block.
const BLOCK_ENTRIES: u64 = CLUSTER / 2;
const COPIED: u64 = 1 << 63;

// The file: header, L1 table, refcount table, refcount blocks, L2 tables, clusters.
const L1: u64 = 1;
const REFCOUNT_TABLE: u64 = 2;
const BLOCKS: u64 = 3;
const FIXED: u64 = BLOCKS + L2_TABLES + ALLOCATED;
const BLOCK_COUNT: u64 = (FIXED + 16).div_ceil(BLOCK_ENTRIES);
const L2: u64 = BLOCKS + BLOCK_COUNT;
const DATA: u64 = L2 + L2_TABLES;
const END: u64 = DATA + ALLOCATED;

/// Writes the image.
pub(super) fn write(path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let put = |cluster: u64, bytes: &[u8]| {
        file.write_all_at(bytes, cluster * CLUSTER)
            .with_context(|| path.display().to_string())
    };
    file.set_len(END * CLUSTER).context("size")?;
    put(0, &header())?;
    put(L1, &words((L2..DATA).map(|at| (at * CLUSTER) | COPIED)))?;
    put(REFCOUNT_TABLE, &words((BLOCKS..L2).map(|at| at * CLUSTER)))?;
    for block in 0..BLOCK_COUNT {
        let first = block * BLOCK_ENTRIES;
        let counts =
            (first..first + BLOCK_ENTRIES).flat_map(|at| u16::from(at < END).to_be_bytes());
        put(BLOCKS + block, &counts.collect::<Vec<_>>())?;
    }
    let mut places: Vec<u64> = (DATA..END).collect();
    let mut numbers = Numbers::new(11);
    numbers.shuffle(&mut places);
    let each = (ALLOCATED / L2_TABLES) as usize;
    for (table, places) in (L2..DATA).zip(places.chunks(each)) {
        let mut slots: Vec<u64> = (0..L2_ENTRIES).collect();
        numbers.shuffle(&mut slots);
        let mut entries = vec![0; L2_ENTRIES as usize];
        for (slot, place) in slots.iter().zip(places) {
            if let Some(entry) = entries.get_mut(*slot as usize) {
                *entry = (place * CLUSTER) | COPIED;
            }
        }
        put(table, &words(entries.into_iter()))?;
    }
    Ok(())
}

fn words(words: impl Iterator<Item = u64>) -> Vec<u8> {
    words.flat_map(u64::to_be_bytes).collect()
}

/// Version 3, with no features and no extensions.
fn header() -> Vec<u8> {
    let mut bytes = b"QFI\xfb".to_vec();
    let mut word = |value: u32| bytes.extend(value.to_be_bytes());
    let wide = |value: u64| [(value >> 32) as u32, value as u32];
    word(3);
    // No backing file, clusters of 2^16 bytes.
    [0, 0, 0, 16].into_iter().for_each(&mut word);
    wide(SIZE).into_iter().for_each(&mut word);
    // No encryption; the L1 table.
    [0, L2_TABLES as u32].into_iter().for_each(&mut word);
    wide(L1 * CLUSTER).into_iter().for_each(&mut word);
    wide(REFCOUNT_TABLE * CLUSTER)
        .into_iter()
        .for_each(&mut word);
    // One cluster of refcount table, no snapshots, no feature bits, refcounts of 2^4 bits, the header's length; the
    // end of the extensions.
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 104, 0, 0]
        .into_iter()
        .for_each(&mut word);
    bytes
}
