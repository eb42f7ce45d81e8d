//! The state of a running guest: what its supervisor writes into the guest's folder, and every command reads.

use std::fmt::{self, Display};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::proc::ProcessId;
pub(crate) use super::proc::Times;
use crate::guest::Definition;

/// The name of the file in the guest's folder.
pub(crate) const FILE: &str = "state.json";
/// The longest file that is read.
const LONGEST: u64 = 1 << 20;

/// The state of a guest, in the words of virsh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RunState {
    /// Its processes are being started.
    Starting,
    Running,
    Paused,
    /// It was asked to shut down.
    InShutdown,
    ShutOff,
    Crashed,
}

/// Why a guest is in its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reason {
    Unknown,
    Booted,
    Unpaused,
    User,
    Shutdown,
    Destroyed,
    Crashed,
    Failed,
    Panicked,
}

impl Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            // virsh has no word for it: a guest runs or does not.
            Self::Starting | Self::Running => "running",
            Self::Paused => "paused",
            Self::InShutdown => "in shutdown",
            Self::ShutOff => "shut off",
            Self::Crashed => "crashed",
        })
    }
}

impl Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Booted => "booted",
            Self::Unpaused => "unpaused",
            Self::User => "user",
            Self::Shutdown => "shutdown",
            Self::Destroyed => "destroyed",
            Self::Crashed => "crashed",
            Self::Failed => "failed",
            Self::Panicked => "panicked",
        })
    }
}

/// One process of a guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProcessState {
    /// `vmm`, `vda`, `net0`.
    pub(crate) name: String,
    /// `None` while it does not run.
    pub(crate) id: Option<ProcessId>,
    /// How often it was started again.
    pub(crate) restarts: u32,
}

/// The state of a running guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// The number by which verbs know it while it runs.
    pub(crate) id: u32,
    pub(crate) definition: Definition,
    /// Whether the definition is in a file, and stays when the guest ends.
    pub(crate) persistent: bool,
    /// Whether the guest's processes end with their supervisor (`bulkhead run` on a terminal).
    pub(crate) foreground: bool,
    pub(crate) state: RunState,
    pub(crate) reason: Reason,
    /// When it was started, in seconds since 1970.
    pub(crate) started: u64,
    pub(crate) supervisor: ProcessId,
    pub(crate) processes: Vec<ProcessState>,
    /// The socket of the net helper, if it is another than that of the runtime folder.
    pub(crate) helper_socket: Option<PathBuf>,
    /// The version of the programs that the guest runs on.
    pub(crate) version: String,
}

impl State {
    /// Reads the state of the guest with this folder. Returns `None` when there is none.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a state.
    pub(crate) fn read(folder: &Path) -> io::Result<Option<Self>> {
        read(&folder.join(FILE))
    }

    /// Writes the state. A reader sees this one or the last one.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        write(&folder.join(FILE), self)
    }

    /// The id of the process with this name, while it runs.
    pub(crate) fn process(&self, name: &str) -> Option<ProcessId> {
        let mut processes = self.processes.iter();
        processes.find(|process| process.name == name)?.id
    }
}

/// How a guest ended, which is known until it is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastEnd {
    pub(crate) state: RunState,
    pub(crate) reason: Reason,
}

impl LastEnd {
    const FOLDER: &str = ".ended";

    fn path(base: &Path, name: &str) -> PathBuf {
        base.join(Self::FOLDER).join(name)
    }

    /// Reads how the guest of this name ended. Returns `None` when that is not known.
    pub(crate) fn read(base: &Path, name: &str) -> Option<Self> {
        read(&Self::path(base, name)).ok().flatten()
    }

    pub(crate) fn write(self, base: &Path, name: &str) -> io::Result<()> {
        match std::fs::create_dir(base.join(Self::FOLDER)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        write(&Self::path(base, name), &self)
    }
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> io::Result<Option<T>> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    // With room for all of it, one call reads it.
    let length = file.metadata()?.len().min(LONGEST);
    let mut text = Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 1);
    file.take(LONGEST).read_to_end(&mut text)?;
    Ok(Some(serde_json::from_slice(&text)?))
}

fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let new = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&new)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    std::fs::rename(&new, path)
}
