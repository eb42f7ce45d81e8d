//! What this program has changed on the host, written down before it is changed, so that the next run can put it right when this one is
//! killed. The folder also says, by a lock, that the program runs.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bulkhead_net_protocol::MacAddr;
use bulkhead_process::broker::Broker;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::identity::Owner;
use crate::link::Link;
use crate::listen;
use crate::network::Network;

/// How long a helper that ends may take to undo everything, and how often we look.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

const RECORD: &str = "state.json";
const LOCK: &str = "lock";

/// What was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// Networks made.
    pub(crate) networks: Vec<Network>,
    /// Whether packets were not forwarded between interfaces before this program came.
    pub(crate) forwarding_was_off: bool,
    /// Whether the nftables table and the routing rules are this program's.
    #[serde(default)]
    pub(crate) rules: bool,
    /// Whose the interfaces are.
    #[serde(default)]
    pub(crate) owner: Owner,
    /// The hardware address of each bridge that was made, by its name: guests know it.
    #[serde(default)]
    pub(crate) bridges: BTreeMap<String, MacAddr>,
}

impl Record {
    /// Whether an interface is a network's bridge as this program has made it.
    pub(crate) fn is_bridge(&self, link: &Link, network: &Network) -> bool {
        let name = network.bridge.as_str();
        let mac = self.bridges.get(name);
        link.is_bridge
            && link.name == name
            && network.owns_bridge()
            // One that was made a moment before the program was killed has no alias yet.
            && (self.owner.owns(link, &network.bridge)
                || mac.is_some_and(|mac| mac.octets() == *link.mac))
    }
}

/// The folder.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// The folders above it that were made for it, the innermost first.
    made: Vec<PathBuf>,
    /// Whether the folder itself is the broker's to remove.
    is_left: bool,
    _lock: File,
}

impl StateDir {
    /// Opens the folder, or makes it; what the last run left, if it was killed.
    ///
    /// Another helper that has the folder is waited for if it does not listen on `socket`: it is about to end, or to begin.
    pub(crate) fn open(path: &Path, socket: &Path) -> Result<(Self, Record)> {
        let until = Instant::now() + PATIENCE;
        let state = loop {
            if let Some(state) = Self::claim(path)? {
                break state;
            }
            if listen::is_served(socket) || Instant::now() > until {
                let shown = path.display();
                bail!("another bulkhead-net-helper is running with the state folder {shown}");
            }
            std::thread::sleep(PAUSE);
        };
        let record = state.read().inspect_err(|_| state.give_up())?;
        Ok((state, record))
    }

    /// None while another helper has it.
    fn claim(path: &Path) -> Result<Option<Self>> {
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
            // Another has just removed the folder above.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                return Err(e).with_context(|| format!("cannot make the state folder {shown}"));
            }
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = match open_regular(&path.join(LOCK), &mut options) {
            // Another has just removed the folder.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            lock => lock
                // Only if there is nothing in it, as when we have just made it.
                .inspect_err(|_| drop(fs::remove_dir(path)))
                .with_context(|| format!("cannot open {}", path.join(LOCK).display()))?,
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        // What is locked may be the file of one that has removed it since.
        let same = fs::metadata(path.join(LOCK))
            .and_then(|there| Ok(there.ino() == lock.metadata()?.ino()))
            .unwrap_or(false);
        Ok(same.then(|| StateDir {
            path: path.to_owned(),
            made,
            is_left: false,
            _lock: lock,
        }))
    }

    /// Leaves the removal of the folder, and of those made for it, to the broker: a confined process sees what is in it and no more.
    pub(crate) fn leave_folders_to(&mut self, broker: &mut Broker) -> Result<()> {
        for folder in std::iter::once(&self.path).chain(&self.made) {
            let left = broker.remove_folder_at_end(folder);
            left.with_context(|| format!("cannot look at {}", folder.display()))?;
        }
        self.is_left = true;
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file in the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Removes the folder if nothing was written down in it, such as when it has just been made.
    fn give_up(&self) {
        let nothing = fs::symlink_metadata(self.file(RECORD)).is_err();
        if nothing && fs::remove_file(self.file(LOCK)).is_ok() {
            for folder in std::iter::once(&self.path).chain(&self.made) {
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

    /// Writes down what is about to be changed. Whole or not at all.
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

    /// Removes what this program keeps in the folder, the folder, and the folders made for it if nothing else is in them.
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
        if self.is_left {
            return Ok(());
        }
        fs::remove_dir(&self.path).with_context(|| format!("cannot remove {shown}"))?;
        for folder in &self.made {
            // Others may use it by now.
            let _ = fs::remove_dir(folder);
        }
        Ok(())
    }
}

/// Opens a regular file. Whatever else is there could keep us waiting, or is somebody else's.
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

    /// Where nobody listens.
    fn open(path: &Path) -> Result<(StateDir, Record)> {
        StateDir::open(path, &path.with_file_name("no.sock"))
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
        assert!(found.owner.is_nobody() && found.bridges.is_empty());
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
        let _listener = listen::Listener::bind(&socket, None).unwrap();
        let error = StateDir::open(&path, &socket).unwrap_err().to_string();
        assert!(
            error.contains("another bulkhead-net-helper is running"),
            "{error}"
        );
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
