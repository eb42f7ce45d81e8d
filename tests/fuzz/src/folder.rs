//! A folder of the host's, for images that are opened by their names and lead to others by names.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use qcow::{Format, Image, OpenOptions};

use crate::for_check;
use crate::input::Input;
use crate::memory::Memory;

/// Opens an image of this input, and all that it names, as far as that is in one folder. What is found is handed to `then`.
pub fn open_by_name(input: &Input<'_>, options: OpenOptions, then: impl FnOnce(&Image)) {
    let images = std::iter::once(&input.image).chain(&input.below);
    if !images.clone().all(|image| leads_nowhere_else(image)) {
        return;
    }
    let folder = folder();
    if fs::create_dir(&folder).is_err() {
        return;
    }
    // What the sound images name; the last layer leads to the one above it, and no chain is without an end.
    for (name, image) in ["image.qcow2", "below", "elsewhere"].iter().zip(images) {
        fs::write(folder.join(name), image).expect("a scratch file");
    }
    if let Ok(image) = Image::open(folder.join("image.qcow2"), &options) {
        then(&image);
    }
    fs::remove_dir_all(&folder).expect("a scratch folder");
}

/// The options of one who follows names to at most so many images.
pub fn following(depth: u32, guess: bool) -> OpenOptions {
    OpenOptions::new(Format::Qcow2)
        .follow_references()
        .max_depth(depth)
        .unformatted_backing(guess.then_some(Format::Qcow2))
}

/// Whether an image names a file of the same folder, or none, or something that is refused.
fn leads_nowhere_else(image: &[u8]) -> bool {
    let storage = Box::new(Memory::new(image));
    let named = Image::open_storage(storage, "image.qcow2", &for_check());
    named.and_then(|image| image.info()).is_ok_and(|facts| {
        let name = facts.backing_filename;
        name.is_none_or(|name| !name.contains('/') && !name.ends_with(".."))
    })
}

fn folder() -> PathBuf {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    let root = ROOT.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        match memory.is_dir() {
            true => memory.to_path_buf(),
            false => std::env::temp_dir(),
        }
    });
    root.join(format!("bulkhead-fuzz-{}", std::process::id()))
}
