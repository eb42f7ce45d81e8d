//! Where the messages of a guest's processes go: to standard error in the foreground, to a file in the background.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The longest file. When it is full, it becomes the older one, whose content is lost.
const LONGEST: u64 = 1 << 20;

/// A sink of messages, which all threads of a supervisor share.
#[derive(Clone)]
pub(crate) struct Messages(Sink);

#[derive(Clone)]
enum Sink {
    StandardError,
    File(Arc<Mutex<Log>>),
}

impl Messages {
    /// Messages are warnings on standard error.
    pub(crate) fn to_standard_error() -> Self {
        Self(Sink::StandardError)
    }

    /// Messages are lines of a file, with their time.
    ///
    /// # Errors
    /// When the file cannot be opened for writing.
    pub(crate) fn to_file(path: &Path) -> io::Result<Self> {
        let log = Log::open(path)?;
        Ok(Self(Sink::File(Arc::new(Mutex::new(log)))))
    }

    /// Passes on a message about something that the guest goes on in spite of.
    pub(crate) fn warn(&self, message: &str) {
        match &self.0 {
            Sink::StandardError => bulkhead_process::warn(message),
            Sink::File(log) => {
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                let mut line = timestamp();
                let _ = writeln!(line, " {message}");
                // A full disk must not end the guest.
                let _ = log.append(line.as_bytes());
            }
        }
    }

    /// Passes on what a process did as it should.
    pub(crate) fn say(&self, name: &str, message: &str) {
        match &self.0 {
            Sink::StandardError => bulkhead_process::say(name, message),
            Sink::File(_) => self.warn(&format!("{name}: {message}")),
        }
    }
}

/// The time in UTC, as RFC 3339 writes it.
fn timestamp() -> String {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    crate::output::utc(now.tv_sec)
}

/// A file of bounded length and its older half.
pub(super) struct Log {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Log {
    /// Opens a file for appending, or makes it with mode 0600.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let length = file.metadata()?.len();
        let path = path.to_owned();
        Ok(Self { path, file, length })
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.length.saturating_add(bytes.len() as u64) > LONGEST {
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            std::fs::rename(&self.path, older)?;
            *self = Self::open(&self.path)?;
        }
        self.file.write_all(bytes)?;
        self.length = self.length.saturating_add(bytes.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_a_bounded_length_and_keeps_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = Log::open(&path).unwrap();
        let line = [b'x'; 1023];
        for number in 0..3000_u32 {
            log.append(&line).unwrap();
            log.append(if number == 2999 { b"!" } else { b"\n" })
                .unwrap();
        }
        let (new, old) = (
            std::fs::read(&path).unwrap(),
            std::fs::read(folder.path().join("log.1")).unwrap(),
        );
        assert!(new.ends_with(b"!"));
        assert!(new.len() as u64 <= LONGEST && old.len() as u64 <= LONGEST);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_log_is_continued() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        for word in [b"a", b"b"] {
            Log::open(&path).unwrap().append(word).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"ab");
    }
}
