//! Images with known contents, made and read by QEMU's own tool.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::pattern;

/// An image format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The bytes themselves.
    Raw,
    /// qcow2.
    Qcow2,
}

impl Format {
    /// Its name on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// An image file.
pub struct Image {
    path: PathBuf,
    format: Format,
}

impl Image {
    /// An image `folder/NAME` that holds `size` bytes of the pattern of `seed`.
    pub fn with_pattern(folder: &Path, name: &str, format: Format, size: usize, seed: u64) -> Self {
        let raw = folder.join(format!("{name}.source"));
        std::fs::write(&raw, pattern(seed, 0, size)).unwrap();
        let path = folder.join(name);
        match format {
            Format::Raw => std::fs::rename(&raw, &path).unwrap(),
            Format::Qcow2 => {
                qemu_img(&["convert", "-f", "raw", "-O", "qcow2"], &[&raw, &path]);
                std::fs::remove_file(&raw).unwrap();
            }
        }
        Self { path, format }
    }

    /// A new qcow2 image `folder/NAME` whose backing file is `self`.
    #[must_use]
    pub fn overlay(&self, folder: &Path, name: &str) -> Self {
        let path = folder.join(name);
        let options = [
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            self.format.name(),
            "-b",
        ];
        qemu_img(&options, &[&self.path, &path]);
        Self {
            path,
            format: Format::Qcow2,
        }
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// What a guest would read from it, while nothing writes to it.
    #[must_use]
    pub fn contents(&self) -> Vec<u8> {
        let raw = self.path.with_extension("contents");
        qemu_img(
            &["convert", "-f", self.format.name(), "-O", "raw"],
            &[&self.path, &raw],
        );
        let contents = std::fs::read(&raw).unwrap();
        std::fs::remove_file(&raw).unwrap();
        contents
    }

    /// Has QEMU's tool look for errors and leaks.
    ///
    /// # Panics
    /// When it finds some.
    pub fn check(&self) {
        if self.format == Format::Qcow2 {
            qemu_img(&["check", "-q", "-f", "qcow2"], &[&self.path]);
        }
    }

    /// Writes to the file of a raw image, under the eyes of a guest.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) {
        assert_eq!(self.format, Format::Raw);
        let file = File::options().write(true).open(&self.path).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    /// Reads from the file of a raw image, under the eyes of a guest.
    #[must_use]
    pub fn read_at(&self, offset: u64, len: usize) -> Vec<u8> {
        assert_eq!(self.format, Format::Raw);
        let mut bytes = vec![0; len];
        File::open(&self.path)
            .unwrap()
            .read_exact_at(&mut bytes, offset)
            .unwrap();
        bytes
    }
}

fn qemu_img(options: &[&str], files: &[&Path]) {
    let output = Command::new("qemu-img")
        .args(options)
        .args(files)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "qemu-img {options:?} {files:?}: {errors}"
    );
}

/// The checksum the guest reports.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u64 {
    crc32fast::hash(bytes).into()
}
