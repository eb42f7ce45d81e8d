//! `bulkhead-fuzz`: what the fuzz targets share: an image in memory, sound images to start from and patches to their
//! metadata, programs of operations, and a model of what a disk must hold.
//!
//! It may touch memory, and one unnamed file that stands in for external data files; it depends on the library a target hands
//! its input to.

#![forbid(unsafe_code)]

pub mod data_file;
pub mod hostile;
pub mod journal;
pub mod memory;
pub mod model;
pub mod places;
pub mod program;
pub mod sound;
mod upkeep;

use memory::Memory;
use qcow::{Format, Image, OpenOptions};

/// Opens the bytes as a qcow2 image. No other file is opened, whatever the image names.
pub fn open(memory: &Memory, options: OpenOptions) -> qcow::Result<Image> {
    // Small, so that tables are evicted even from the small images a fuzzer makes.
    let options = options.cache_bytes(16 << 10);
    Image::open_storage(Box::new(memory.clone()), "image.qcow2", &options)
}

/// As [`open`], with something below an image that names a backing file, and a data file for one that names one.
pub fn open_whole(memory: &Memory, options: OpenOptions) -> qcow::Result<Image> {
    let named = open(memory, for_check())?.info()?;
    let mut options = options;
    if named.qcow2.is_some_and(|facts| facts.data_file.is_some()) {
        options = options.data_file(data_file::at_hand());
    }
    let image = open(memory, options)?;
    Ok(match named.backing_filename {
        Some(_) => image.over(sound::below()),
        None => image,
    })
}

/// Whether the image has been marked: somebody was about to write and found damage.
pub fn is_marked_corrupt(memory: &Memory) -> bool {
    const CORRUPT: u64 = 2;
    let bytes = memory.bytes();
    places::word(&bytes, 4, 4) >= 3 && places::word(&bytes, 72, 8) & CORRUPT != 0
}

/// As qemu-img check opens an image.
pub fn for_check() -> OpenOptions {
    OpenOptions::new(Format::Qcow2).for_check(true)
}
