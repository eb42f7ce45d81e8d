//! `bulkhead-fuzz`: what the fuzz targets share: an image in memory, and an input that is a program and an image.
//!
//! It may touch memory only, and depends on the library a target hands its input to.

#![forbid(unsafe_code)]

pub mod memory;
pub mod program;

use memory::Memory;
use qcow::{Format, Image, OpenOptions};

/// Opens the bytes as a qcow2 image. No other file is opened, whatever the image names.
pub fn open(memory: &Memory, options: OpenOptions) -> qcow::Result<Image> {
    // Small, so that tables are evicted even from the small images a fuzzer makes.
    let options = options.cache_bytes(16 << 10);
    Image::open_storage(Box::new(memory.clone()), "image.qcow2", &options)
}

/// As qemu-img check opens an image.
pub fn for_check() -> OpenOptions {
    OpenOptions::new(Format::Qcow2).for_check(true)
}
