//! The runtime folder, `/run/bulkhead` for root and `$XDG_RUNTIME_DIR/bulkhead` for a user, and the folder of each
//! guest in it.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{DirBuilder, DirEntry, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};

use crate::guest::{EVENTS, MONITOR_FOLDER};
use crate::supervise::{FIFO, state};

/// The number of attempts to make a folder that other runs remove meanwhile.
const TRIES: usize = 100;

/// The folder with all guests' folders and the helper's socket.
pub(crate) fn base() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/run/bulkhead"));
    }
    let user = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let user = user.filter(|path| path.is_absolute()).context(
        "XDG_RUNTIME_DIR is not set to an absolute path: log in properly, or set it to a folder of your own",
    )?;
    Ok(user.join("bulkhead"))
}

/// The folder in which guests are looked for. Without a login session none runs, but definitions are there.
pub(crate) fn known_base() -> PathBuf {
    base().unwrap_or_else(|_| usual_base())
}

/// The folder of this user in a login session.
pub(crate) fn usual_base() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    PathBuf::from(format!("/run/user/{user}/bulkhead"))
}

/// The socket of the helper that root starts.
pub(crate) const SYSTEM_HELPER: &str = "/run/bulkhead/net-helper.sock";

/// The socket of a network helper that others start: the `named` one, or the one of root, which a user may share who
/// has none. `None`: the helper in the runtime folder.
pub(crate) fn helper_socket(base: &Path, named: Option<PathBuf>) -> Option<PathBuf> {
    let root = rustix::process::geteuid().is_root();
    let own = base.join("net-helper.sock");
    let system = Path::new(SYSTEM_HELPER);
    match named {
        None if !root && !own.exists() && system.exists() => Some(system.to_owned()),
        named => named,
    }
}

/// The folder with the logs of a guest, which is made if it is missing.
///
/// # Errors
/// When it cannot be made, or nobody says where it is to be.
pub(crate) fn logs(name: &str) -> anyhow::Result<PathBuf> {
    let path = logs_of(name)?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
    made.with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

/// The folder with the logs of a guest, `/var/log/bulkhead/NAME` for root and `$XDG_STATE_HOME/bulkhead/log/NAME` for a
/// user.
pub(crate) fn logs_of(name: &str) -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(Path::new("/var/log/bulkhead").join(name));
    }
    let named = |variable: &str| {
        let path = std::env::var_os(variable).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let state = named("XDG_STATE_HOME").or_else(|| Some(named("HOME")?.join(".local/state")));
    let state = state.context("neither XDG_STATE_HOME nor HOME is set to an absolute path")?;
    Ok(state.join("bulkhead/log").join(name))
}

/// Calls `body` while no other command calls this.
pub(crate) fn with_lock<T>(base: &Path, body: impl FnOnce() -> io::Result<T>) -> anyhow::Result<T> {
    let failed = || format!("cannot lock {}", base.display());
    let file = File::open(base).with_context(failed)?;
    flock(&file, FlockOperation::LockExclusive).with_context(failed)?;
    body().with_context(|| format!("cannot write into {}", base.display()))
}

/// The length of the path in `sockaddr_un`, without the zero at the end.
const LONGEST_SOCKET_PATH: usize = 107;
/// The longest name of a socket in a guest's folder.
const LONGEST_NAME: &str = "control.sock";

/// The file in a guest's folder whose lock reserves the guest's name.
const LOCK: &str = "lock";
/// The regular files in a guest's folder.
const FILES: &[&str] = &[LOCK, state::FILE, "state.new", EVENTS];

/// A running guest's folder, which reserves its name. Dropping it removes the folder.
#[derive(Debug)]
pub(crate) struct GuestFolder {
    path: PathBuf,
    // Locked as long as the guest runs. The folder itself cannot serve: a process that listens in it locks it for a
    // moment.
    _lock: File,
    /// Whether the files stay.
    is_left: Cell<bool>,
    /// A reserved descriptor, so that the folder can be read at the end even if the process has no others left.
    spare: Option<File>,
}

impl GuestFolder {
    /// Reserves the name, and removes what a killed run of it has left.
    pub(crate) fn claim(path: &Path) -> anyhow::Result<Self> {
        let folder = Self::reserve(path)?;
        folder.clear()?;
        Ok(folder)
    }

    /// Reserves the name.
    pub(crate) fn reserve(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        if path.join(LONGEST_NAME).as_os_str().len() > LONGEST_SOCKET_PATH {
            bail!(
                "the path {shown} is too long for the sockets in it, {LONGEST_SOCKET_PATH} bytes at most: \
                 choose a shorter name or a shorter $XDG_RUNTIME_DIR"
            );
        }
        let mut tries = 0..TRIES;
        if let Some(base) = path.parent() {
            check_base(base)?;
        }
        loop {
            check_own(path)?;
            check_entries(path)?;
            let lock = match make_folder(path).and_then(|()| open_lock(&path.join(LOCK))) {
                // Another run of this name may just have removed the guest's folder, or the last guest the runtime
                // folder.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries.next().is_some() => {
                    continue;
                }
                lock => lock
                    .inspect_err(|_| remove_if_empty(path))
                    .with_context(|| format!("cannot create {shown}/{LOCK}"))?,
            };
            if let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                if error == rustix::io::Errno::WOULDBLOCK {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    bail!("guest '{name}' is running already");
                }
                return Err(error).with_context(|| format!("cannot lock {shown}/{LOCK}"));
            }
            // The locked file may be that of a run which has removed it meanwhile.
            if !is_same(&lock, &path.join(LOCK)) {
                continue;
            }
            let folder = Self {
                path: path.to_owned(),
                spare: lock.try_clone().ok(),
                is_left: Cell::new(false),
                _lock: lock,
            };
            // Only now that the name is reserved: a unit that starts looks for that after it has made its folder.
            check_units(path)?;
            return Ok(folder);
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Has the files stay when the name is given back, since they are of processes that run.
    pub(crate) fn leave(&self) {
        self.is_left.set(true);
    }

    /// Removes all files but the lock.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        self.remove_files()
            .with_context(|| format!("cannot clear {}", self.path.display()))
    }

    fn remove_files(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name() != LOCK && is_ours(&entry) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// The folder of the guests that systemd's units run.
pub(crate) const UNITS: &str = "/run/bulkhead-units";

/// Checks that no unit runs root's guest of this path.
fn check_units(path: &Path) -> anyhow::Result<()> {
    let name = path.file_name().unwrap_or_default();
    let monitor = Path::new(UNITS).join(name).join(MONITOR_FOLDER);
    if rustix::process::geteuid().is_root() && monitor.exists() {
        let name = name.to_string_lossy();
        let unit = crate::service::target(&name);
        bail!("guest '{name}' is run by systemd: systemctl status '{unit}'");
    }
    Ok(())
}

/// Whether a command of root's runs the guest, or reserves its name.
pub(crate) fn is_reserved(path: &Path) -> bool {
    let held = |lock: File| {
        flock(&lock, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    };
    File::open(path.join(LOCK)).is_ok_and(held)
}

/// Checks the runtime folder: a user who can rename the folders in it could put sockets of their own in the place of
/// this guest's.
pub(crate) fn check_base(base: &Path) -> anyhow::Result<()> {
    const STICKY: u32 = 0o1000;
    const ALL_WRITE: u32 = 0o002;
    let shown = base.display();
    let metadata = match std::fs::metadata(base) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Another run may just have created it.
            return match std::fs::symlink_metadata(base) {
                Ok(there) if there.is_symlink() => {
                    bail!("the link {shown} leads nowhere: remove it")
                }
                _ => Ok(()),
            };
        }
        metadata => metadata.with_context(|| format!("cannot look at {shown}"))?,
    };
    if !metadata.is_dir() {
        bail!("{shown} is not a folder: remove it");
    }
    let user = rustix::process::geteuid().as_raw();
    if ![0, user].contains(&metadata.uid()) {
        bail!(
            "the folder {shown} belongs to another user: remove it, or set $XDG_RUNTIME_DIR to a folder of your own"
        );
    }
    if metadata.mode() & (ALL_WRITE | STICKY) == ALL_WRITE {
        bail!("the folder {shown} can be written by everybody: chmod o-w {shown}");
    }
    Ok(())
}

/// Checks that the guest's path, if it exists, is a folder of this user's.
fn check_own(path: &Path) -> anyhow::Result<()> {
    const ADVICE: &str = "remove it, or choose another --name";
    const GROUP_OR_ALL_WRITE: u32 = 0o022;
    let shown = path.display();
    let metadata = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata.with_context(|| format!("cannot look at {shown}"))?,
    };
    if !metadata.is_dir() {
        bail!("{shown} is not a folder: {ADVICE}");
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        bail!("the folder {shown} belongs to another user: {ADVICE}");
    }
    if metadata.mode() & GROUP_OR_ALL_WRITE != 0 {
        bail!("{shown} can be written by others: {ADVICE}");
    }
    Ok(())
}

/// Checks that only a guest's files are in the folder, since they are going to be removed.
fn check_entries(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("cannot look into {shown}"))?,
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot look into {shown}"))?;
        if !is_ours(&entry) {
            let entry = entry.path();
            bail!(
                "{} is in the way, and is not bulkhead's: move it elsewhere, or choose another --name",
                entry.display()
            );
        }
    }
    Ok(())
}

/// Whether a file in the folder is of a guest: a socket, a FIFO for messages, the lock, the state, the events.
fn is_ours(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    let is_fifo = Path::new(&name).extension() == Some(OsStr::new(FIFO));
    match entry.file_type() {
        Ok(kind) if FILES.iter().any(|file| name == *file) => kind.is_file(),
        Ok(kind) if is_fifo => kind.is_fifo(),
        Ok(kind) => kind.is_socket(),
        // It has just been removed.
        Err(_) => true,
    }
}

/// Creates the guest's folder with mode 0700, and the runtime folder, if it is missing, with mode 0755, whatever the
/// umask is.
fn make_folder(path: &Path) -> io::Result<()> {
    let make = |path: &Path, mode| match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        made => made.map(|()| true),
    };
    if let Some(base) = path.parent()
        && make(base, 0o755)?
    {
        std::fs::set_permissions(base, Permissions::from_mode(0o755))?;
    }
    make(path, 0o700)?;
    if !std::fs::symlink_metadata(path)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    // This fails for another user's folder.
    std::fs::set_permissions(path, Permissions::from_mode(0o700))
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // Without O_NONBLOCK, opening a FIFO would wait for a reader.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

fn is_same(file: &File, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(file), Ok(path)) => identity(file) == identity(path),
        _ => false,
    }
}

impl Drop for GuestFolder {
    fn drop(&mut self) {
        drop(self.spare.take());
        if self.is_left.get() {
            return;
        }
        // The next run of this name removes what cannot be removed now.
        let _ = self.remove_files();
        let _ = std::fs::remove_file(self.path.join(LOCK));
        remove_if_empty(&self.path);
    }
}

/// Removes a guest's folder, and the runtime folder unless it has other files.
fn remove_if_empty(path: &Path) {
    let _ = std::fs::remove_dir(path);
    let _ = path.parent().map(std::fs::remove_dir);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn what_is_not_a_guests_is_named_and_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("one");
        let make = |what: &str, at: &Path| {
            let made = std::process::Command::new("sh")
                .args(["-c", what])
                .env("AT", at)
                .status();
            assert!(made.unwrap().success(), "{what}");
        };
        for (name, what) in [
            ("", "echo data >$AT"),
            ("", "ln -s /tmp $AT"),
            ("", "ln -s /nowhere $AT"),
            ("", "mkfifo $AT"),
            ("", "mkdir -m 777 $AT"),
            ("notes", "echo data >$AT"),
            ("vda.sock", "echo data >$AT"),
            ("vda.sock", "mkdir $AT"),
            ("vda.sock", "ln -s /tmp $AT"),
            ("lock", "mkdir $AT"),
            ("lock", "mkfifo $AT"),
            ("lock", "ln -s /tmp/x $AT"),
        ] {
            let at = match name {
                "" => path.clone(),
                name => {
                    std::fs::create_dir(&path).unwrap();
                    path.join(name)
                }
            };
            make(what, &at);
            let before = std::fs::symlink_metadata(&at).unwrap();

            let error = GuestFolder::claim(&path).unwrap_err().to_string();

            assert!(error.starts_with(&at.display().to_string()), "{error}");
            assert!(error.ends_with("or choose another --name"), "{error}");
            let after = std::fs::symlink_metadata(&at).unwrap();
            assert_eq!(
                (after.ino(), after.mode(), after.len()),
                (before.ino(), before.mode(), before.len()),
                "{what}"
            );
            make("rm -rf $AT", &path);
        }
    }

    #[test]
    fn a_name_can_be_claimed_once_at_a_time() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("bulkhead/one");
        let first = GuestFolder::claim(&path).unwrap();

        let second = GuestFolder::claim(&path).unwrap_err();
        assert_eq!(second.to_string(), "guest 'one' is running already");

        drop(first);
        assert!(!path.exists());
        assert!(GuestFolder::claim(&path).is_ok());
    }

    #[test]
    fn what_a_killed_run_left_is_removed() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("one");
        std::fs::create_dir(&path).unwrap();
        drop(UnixListener::bind(path.join("vda.sock")).unwrap());

        let folder = GuestFolder::claim(&path).unwrap();

        let left = std::fs::read_dir(folder.path()).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [LOCK]);
    }

    #[test]
    fn a_folder_that_others_remove_is_made_anew() {
        let base = tempfile::tempdir().unwrap();
        let names: Vec<_> = (0..4).map(|n| base.path().join(format!("b/{n}"))).collect();
        std::thread::scope(|scope| {
            for path in &names {
                scope.spawn(move || {
                    for _ in 0..200 {
                        let folder = GuestFolder::claim(path).unwrap();
                        drop(UnixListener::bind(folder.path().join("vda.sock")).unwrap());
                    }
                });
            }
        });
        assert!(!base.path().join("b").exists());
    }
}
