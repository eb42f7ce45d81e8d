//! `bulkhead-fuzz`: what the fuzz targets share: images and other files in memory, sound images to start from and patches to their
//! metadata, programs of operations, and what must hold of them: a model of the disk, and answers that must agree.
//!
//! It may touch memory, and one folder of its own where an image is opened by its name; it depends on the library a target hands
//! its input to.

#![forbid(unsafe_code)]

pub mod content;
pub mod folder;
pub mod host;
pub mod hostile;
pub mod input;
pub mod kinds;
mod look;
pub mod memory;
pub mod mended;
pub mod model;
pub mod notes;
pub mod places;
pub mod program;
pub mod sound;
mod upkeep;

use qcow::{Format, OpenOptions};

/// As qemu-img check opens an image.
pub fn for_check() -> OpenOptions {
    OpenOptions::new(Format::Qcow2).for_check(true)
}
