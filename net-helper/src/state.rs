//! The state folder. It records what this program changes on the host, before the change, so that the next run can take
//! it over or undo it when this one is killed. A lock in the folder shows that the program runs.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bulkhead_mac::MacAddr;
use bulkhead_process::broker::Broker;
use bulkhead_process::listen::Listen;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::identity::Owner;
use crate::link::Link;
use crate::network::Network;

/// How long to wait for another helper to end or to begin, and how long between two tries.
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(20);

const RECORD: &str = "state.json";
const LOCK: &str = "lock";

/// What was changed. `state.json` contains it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// The networks that were created.
    pub(crate) networks: Vec<Network>,
    /// Whether this program has switched on `net.ipv4.ip_forward`.
    pub(crate) forwarding_was_off: bool,
    /// Whether the nftables table and the routing rules are this program's.
    #[serde(default)]
    pub(crate) rules: bool,
    /// The owner in the aliases of the interfaces.
    #[serde(default)]
    pub(crate) owner: Owner,
    /// The MAC address of each bridge, by the bridge's name. A bridge that is created again must have the address that
    /// guests know.
    #[serde(default)]
    pub(crate) bridges: BTreeMap<String, MacAddr>,
}

impl Record {
    /// Whether an interface is the bridge that this program has created for a network, whatever its name is now.
    pub(crate) fn is_bridge(&self, link: &Link, network: &Network) -> bool {
        let name = network.bridge.as_str();
        let mac = self.bridges.get(name);
        // When the program was killed between the creation and the alias, the MAC address identifies the bridge.
        let has_mac = mac.is_some_and(|mac| mac.octets() == *link.mac);
        let is_named = link.name == name || link.group == self.owner.group();
        link.is_bridge
            && network.owns_bridge()
            && (self.owner.owns(link, &network.bridge) || (has_mac && is_named))
    }
}

/// The folder.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// The parent folders that were created for it, the innermost first.
    created: Vec<PathBuf>,
    /// Whether the broker removes the folders.
    is_brokers: bool,
    _lock: File,
}

impl StateDir {
    /// Opens the folder, or creates it. Also returns the record that the previous run has left, if it was killed.
    ///
    /// If another helper has the folder and does not listen on `socket`, it is about to end or to begin, and this
    /// function waits for that.
    /// `wait` waits for a time, and returns false when the program is to end; then the result is `None`.
    pub(crate) fn open(
        path: &Path,
        socket: &Path,
        mut wait: impl FnMut(Duration) -> Result<bool>,
    ) -> Result<Option<(Self, Record)>> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        let state = loop {
            if let Some(state) = Self::try_lock(path)? {
                break state;
            }
            if Listen::default().seqpacket().is_in_use(socket) || Instant::now() > deadline {
                let shown = path.display();
                bail!("another bulkhead-net-helper is running with the state folder {shown}");
            }
            if !wait(LOCK_RETRY_INTERVAL)? {
                return Ok(None);
            }
        };
        let record = state.read().inspect_err(|_| state.remove_if_unused())?;
        Ok(Some((state, record)))
    }

    /// Creates and locks the folder; `None` while another helper has it.
    fn try_lock(path: &Path) -> Result<Option<Self>> {
        let shown = path.display();
        let parent = path.parent().unwrap_or(path);
        let missing = parent.ancestors().take_while(|folder| !folder.exists());
        let created = missing.map(Path::to_owned).collect();
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .with_context(|| format!("cannot create the parent folder of {shown}"))?;
        match DirBuilder::new().mode(0o700).create(path) {
            // Another helper has just removed the parent folder.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                return Err(e).with_context(|| format!("cannot create the state folder {shown}"));
            }
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = match open_regular(&path.join(LOCK), &mut options) {
            // Another helper has just removed the folder.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            lock => lock
                // This succeeds only if the folder is empty, as it is when it has just been created.
                .inspect_err(|_| drop(fs::remove_dir(path)))
                .with_context(|| format!("cannot open {}", path.join(LOCK).display()))?,
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        // Another helper may have removed the file between its opening here and its lock; then the lock is without
        // effect.
        let is_current = fs::metadata(path.join(LOCK))
            .and_then(|there| Ok(there.ino() == lock.metadata()?.ino()))
            .unwrap_or(false);
        Ok(is_current.then(|| StateDir {
            path: path.to_owned(),
            created,
            is_brokers: false,
            _lock: lock,
        }))
    }

    /// Has the broker remove the folder, and those that were created for it, at the end: a confined process sees only
    /// what is in the folder.
    pub(crate) fn hand_folders_to(&mut self, broker: &mut Broker) -> Result<()> {
        for folder in std::iter::once(&self.path).chain(&self.created) {
            let left = broker.remove_folder_at_end(folder);
            left.with_context(|| format!("cannot look at {}", folder.display()))?;
        }
        self.is_brokers = true;
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file in the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Removes the folder if it has no record, as when it has just been created.
    fn remove_if_unused(&self) {
        let has_no_record = fs::symlink_metadata(self.file(RECORD)).is_err();
        if has_no_record && fs::remove_file(self.file(LOCK)).is_ok() {
            for folder in std::iter::once(&self.path).chain(&self.created) {
                let _ = fs::remove_dir(folder);
            }
        }
    }

    fn read(&self) -> Result<Record> {
        let path = self.file(RECORD);
        let opened = open_regular(&path, OpenOptions::new().read(true));
        let mut text = Vec::new();
        match opened.and_then(|mut file| file.read_to_end(&mut text)) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Record::default()),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is damaged; look what it says, then remove it",
                path.display()
            )
        })
    }

    /// Replaces the record, whole or not at all.
    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let (path, new) = (self.file(RECORD), self.file("state.json.new"));
        let text = serde_json::to_vec(record)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o644);
        let written = open_regular(&new, &mut options)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&new, &path));
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the contents of the folder, then the folder, then the parent folders that were created for it and are
    /// empty.
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
        if self.is_brokers {
            return Ok(());
        }
        fs::remove_dir(&self.path).with_context(|| format!("cannot remove {shown}"))?;
        for folder in &self.created {
            // Other programs may have files there by now.
            let _ = fs::remove_dir(folder);
        }
        Ok(())
    }
}

/// Opens a regular file, and nothing else: opening a FIFO or a device can block, and a symbolic link can lead to any
/// file.
pub(crate) fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    const FLAGS: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let is_other = || io::Error::new(ErrorKind::InvalidInput, "it is no regular file");
    let file = match options.custom_flags(FLAGS).open(path) {
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NXIO | Errno::LOOP)) => {
            return Err(is_other());
        }
        file => file?,
    };
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(is_other()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    fn sleep(time: Duration) -> Result<bool> {
        std::thread::sleep(time);
        Ok(true)
    }

    /// Opens the folder with a socket path that nobody listens on.
    fn open(path: &Path) -> Result<(StateDir, Record)> {
        let opened = StateDir::open(path, &path.with_file_name("no.sock"), sleep)?;
        Ok(opened.expect("it is not to end"))
    }

    fn record() -> Record {
        Record {
            networks: vec![Network::default_network().unwrap()],
            forwarding_was_off: true,
            rules: true,
            owner: Owner::random().unwrap(),
            bridges: BTreeMap::from([("bulkhead0".into(), MacAddr::new([0x52, 0x54, 0, 1, 2, 3]))]),
        }
    }

    #[test]
    fn what_an_older_version_has_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"networks":["name=a,bridge=a0,mode=isolated"],"forwarding_was_off":true}"#;
        fs::write(dir.path().join(RECORD), text).unwrap();
        let found = open(dir.path()).unwrap().1;
        assert_eq!(found.networks.len(), 1);
        assert!(found.owner.is_unset() && found.bridges.is_empty());
    }

    #[test]
    fn what_was_written_is_read_by_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net-helper");
        let (state, nothing) = open(&path).unwrap();
        assert_eq!(nothing, Record::default());
        let written = record();
        state.write(&written).unwrap();
        drop(state);
        assert_eq!(open(&path).unwrap().1, written);
    }

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net-helper");
        let _first = open(&path).unwrap();
        let socket = dir.path().join("helper.sock");
        let _listener = Listen::default().seqpacket().at(&socket).unwrap();
        let error = StateDir::open(&path, &socket, sleep)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("another bulkhead-net-helper is running"),
            "{error}"
        );
    }

    #[test]
    fn a_helper_that_is_to_end_waits_for_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net-helper");
        let _first = open(&path).unwrap();
        let opened = StateDir::open(&path, &dir.path().join("no.sock"), |_| Ok(false));
        assert!(opened.unwrap().is_none());
    }

    #[test]
    fn one_that_ends_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net-helper");
        let first = open(&path).unwrap().0;
        first.write(&record()).unwrap();
        let next = std::thread::spawn({
            let path = path.clone();
            move || open(&path).unwrap()
        });
        first.remove().unwrap();
        let (_state, found) = next.join().unwrap();
        assert_eq!(found, Record::default());
        assert!(path.join(LOCK).exists());
    }

    #[test]
    fn folders_made_for_it_go_with_it_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (state, _) = open(&dir.path().join("bulkhead/helper/state")).unwrap();
        fs::write(dir.path().join("bulkhead/other"), "").unwrap();
        state.remove().unwrap();
        assert!(!dir.path().join("bulkhead/helper").exists());
        assert!(dir.path().join("bulkhead/other").exists());
    }

    #[test]
    fn removal_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net-helper");
        let (state, _) = open(&path).unwrap();
        state.write(&record()).unwrap();
        state.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_damaged_record_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(RECORD), "{").unwrap();
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("state.json is damaged"), "{error}");
    }

    #[test]
    fn what_is_no_regular_file_is_named_and_not_waited_for() {
        let (fifo, link) = (FileType::Fifo, FileType::Symlink);
        for (name, kind) in [RECORD, LOCK]
            .map(|name| [(name, fifo), (name, link)])
            .concat()
        {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(name);
            match kind {
                FileType::Fifo => mknodat(CWD, &path, kind, Mode::RUSR | Mode::WUSR, 0).unwrap(),
                _ => std::os::unix::fs::symlink("/etc/hostname", &path).unwrap(),
            }
            let error = format!("{:#}", open(dir.path()).unwrap_err());
            let named = format!("{name}: it is no regular file");
            assert!(error.ends_with(&named), "{error}");
            assert!(fs::symlink_metadata(&path).is_ok());
        }
    }

    #[test]
    fn what_is_no_regular_file_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (state, _) = open(dir.path()).unwrap();
        let new = dir.path().join("state.json.new");
        mknodat(CWD, &new, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let error = format!("{:#}", state.write(&record()).unwrap_err());
        assert!(error.ends_with("it is no regular file"), "{error}");
    }
}
