//! An image with writes that only its journal knows of.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use qcow::{Format, Image, OpenOptions, Repair};
use tempfile::TempDir;

use super::{Backend, Guest, program, wait};

pub const SIZE: u64 = 32 << 20;

pub fn image(folder: &Path) -> PathBuf {
    let path = folder.join("disk.qcow2");
    qcow::create(&path, &qcow::CreateOptions::new(Format::Qcow2, SIZE)).unwrap();
    path
}

pub fn journal_of(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".bulkhead-journal");
    name.into()
}

/// A guest that writes and does not flush.
pub fn served() -> (TempDir, PathBuf, Backend, Guest) {
    served_from(tempfile::tempdir().unwrap())
}

/// The same, with the image in this folder.
pub fn served_from(folder: TempDir) -> (TempDir, PathBuf, Backend, Guest) {
    let image = image(folder.path());
    let backend = Backend::start(&image, "qcow2", &[]);
    let mut guest = Guest::connect(&backend, 1);
    for block in 0..20u64 {
        guest.write(block * 256, &[1 + block as u8; 4096]);
    }
    (folder, image, backend, guest)
}

/// A guest that wrote and did not flush, and whose backend was killed.
pub fn killed() -> (TempDir, PathBuf, Backend, Guest) {
    let (folder, image, mut backend, guest) = served();
    backend.kill();
    (folder, image, backend, guest)
}

/// Whether all that the guest wrote is there.
pub fn has_all(image: &Image) -> bool {
    (0..20u64).all(|block| {
        let mut data = [0; 4096];
        image.read_at(block * 256 * 512, &mut data).unwrap();
        data == [1 + block as u8; 4096]
    })
}

/// As seen by whoever opens the image, and by qemu-img.
pub fn is_sound_and_closed(image: &Path) {
    let checked = Command::new("qemu-img")
        .args(["check", "-f", "qcow2"])
        .arg(image)
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    assert!(!journal_of(image).exists());
}

pub fn open(image: &Path, writable: bool) -> qcow::Result<Image> {
    Image::open(image, &OpenOptions::new(Format::Qcow2).writable(writable))
}

/// Runs the program to its end, which must be an error of one line.
pub fn refused(image: &Path) -> String {
    refused_within(program(), image)
}

/// The same, of a program that the command starts.
pub fn refused_within(mut command: Command, image: &Path) -> String {
    let socket = tempfile::tempdir().unwrap();
    let mut child = command
        .arg("--socket-path")
        .arg(socket.path().join("refused.sock"))
        .arg("--blk-file")
        .arg(image)
        .args(["--format", "qcow2"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = wait(&mut child);
    let said = child.wait_with_output().unwrap().stderr;
    let said = String::from_utf8_lossy(&said).into_owned();
    assert_eq!(status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

/// Nobody opens it, for writing or reading, and everybody says why, and that a repair goes on without.
pub fn is_refused(image: &Path, words: &[&str]) {
    for said in [
        refused(image),
        open(image, true).unwrap_err().to_string(),
        open(image, false).unwrap_err().to_string(),
    ] {
        for words in words.iter().chain(&["image-tool check -r all"]) {
            assert!(said.contains(words), "{said}");
        }
    }
}

/// What image-tool check -r all does: the image is taken for all there is.
pub fn go_on_without(image: &Path) {
    let options = OpenOptions::new(Format::Qcow2)
        .writable(true)
        .for_check(true);
    let opened = Image::open(image, &options).unwrap();
    let found = opened.check(Repair::All).unwrap();
    assert!(found.is_sound() && found.corruptions_fixed > 0);
    opened.close().unwrap();
    let _ = std::fs::remove_file(journal_of(image));
}
