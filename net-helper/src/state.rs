//! What this program has changed on the host, written down before it is changed, so that the next run can put it right when this one is
//! killed. The folder also says, by a lock, that the program runs.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

const RECORD: &str = "state.json";
const LOCK: &str = "lock";

/// What was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// Bridges made, and the subnet that each has.
    pub(crate) bridges: BTreeMap<String, String>,
    /// Whether packets were not forwarded between interfaces before this program came.
    pub(crate) forwarding_was_off: bool,
    /// Whether the nftables table and the routing rules are this program's.
    #[serde(default)]
    pub(crate) rules: bool,
}

/// The folder.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// The folders above it that were made for it, the innermost first.
    made: Vec<PathBuf>,
    _lock: File,
}

impl StateDir {
    /// Opens the folder, or makes it; what the last run left, if it was killed.
    pub(crate) fn open(path: &Path) -> Result<(Self, Record)> {
        let shown = path.display();
        let parent = path.parent().unwrap_or(path);
        let missing = parent.ancestors().take_while(|folder| !folder.exists());
        let made = missing.map(Path::to_owned).collect();
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .with_context(|| format!("cannot make the parent folder of {shown}"))?;
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                return Err(e).with_context(|| format!("cannot make the state folder {shown}"));
            }
            _ => {}
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK));
        let lock = lock.with_context(|| format!("cannot open {}", path.join(LOCK).display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another bulkhead-net-helper is running with the state folder {shown}");
        }
        let state = StateDir {
            path: path.to_owned(),
            made,
            _lock: lock,
        };
        let record = state.read()?;
        Ok((state, record))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file in the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn read(&self) -> Result<Record> {
        let path = self.file(RECORD);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Record::default()),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is damaged; look what it says, then remove it",
                path.display()
            )
        })
    }

    /// Writes down what is about to be changed. Whole or not at all.
    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let (path, new) = (self.file(RECORD), self.file("state.json.new"));
        let text = serde_json::to_vec(record)?;
        let written = File::create(&new)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&new, &path));
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the folder and what this program keeps in it, and the folders made for it if nothing else is in them.
    pub(crate) fn remove(self) -> Result<()> {
        let shown = self.path.display();
        let entries = fs::read_dir(&self.path).with_context(|| format!("cannot list {shown}"))?;
        for entry in entries {
            let path = entry
                .with_context(|| format!("cannot list {shown}"))?
                .path();
            let removed = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
        fs::remove_dir(&self.path).with_context(|| format!("cannot remove {shown}"))?;
        for folder in &self.made {
            // Others may use it by now; and a confined process may not.
            let _ = fs::remove_dir(folder);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let bridges = BTreeMap::from([("bulkhead0".to_owned(), "192.168.124.0/24".to_owned())]);
        Record {
            bridges,
            forwarding_was_off: true,
            rules: true,
        }
    }

    #[test]
    fn what_was_written_is_read_by_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net-helper");
        let (state, nothing) = StateDir::open(&path).unwrap();
        assert_eq!(nothing, Record::default());
        state.write(&record()).unwrap();
        drop(state);
        assert_eq!(StateDir::open(&path).unwrap().1, record());
    }

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net-helper");
        let _first = StateDir::open(&path).unwrap();
        let error = StateDir::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("another bulkhead-net-helper is running"),
            "{error}"
        );
    }

    #[test]
    fn folders_made_for_it_go_with_it_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (state, _) = StateDir::open(&dir.path().join("bulkhead/helper/state")).unwrap();
        fs::write(dir.path().join("bulkhead/other"), "").unwrap();
        state.remove().unwrap();
        assert!(!dir.path().join("bulkhead/helper").exists());
        assert!(dir.path().join("bulkhead/other").exists());
    }

    #[test]
    fn removal_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net-helper");
        let (state, _) = StateDir::open(&path).unwrap();
        state.write(&record()).unwrap();
        state.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_damaged_record_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(RECORD), "{").unwrap();
        let error = StateDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("state.json is damaged"), "{error}");
    }
}
