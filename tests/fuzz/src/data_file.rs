//! A file for images whose data is elsewhere. The library opens data files by name only, so this is a real one, without a name of
//! its own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::OnceLock;

use qcow::DataFile;

static FILE: OnceLock<File> = OnceLock::new();

fn file() -> &'static File {
    FILE.get_or_init(|| {
        let folder = ["/dev/shm", "/tmp"]
            .iter()
            .map(PathBuf::from)
            .find(|folder| folder.is_dir());
        let path = folder
            .unwrap_or_default()
            .join(format!("bulkhead-fuzz-{}", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .expect("a scratch file");
        std::fs::remove_file(&path).expect("a scratch file");
        file
    })
}

/// The file, as an option of opening an image.
pub fn at_hand() -> DataFile {
    DataFile::Path(format!("/proc/self/fd/{}", file().as_raw_fd()).into())
}

/// Empties it, so that every input finds the same.
pub fn reset() {
    if let Some(file) = FILE.get() {
        file.set_len(0).expect("a scratch file");
    }
}
