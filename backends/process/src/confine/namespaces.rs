//! Namespaces of a process's own: a root folder with nothing in it but what was named, no network, no System V IPC.
//!
//! Root makes them directly; others do in a user namespace of their own, where the host allows that. A process whose
//! work is the host's network keeps that, and its user namespace, to which that network belongs.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use rustix::thread::{CapabilitySet, capabilities};

use super::ConfineError;

/// A file or folder that stays visible, by the name it has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Visible {
    pub(super) path: PathBuf,
    pub(super) access: Access,
}

/// What may be done with it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Access {
    Read,
    Write,
    /// Reading and executing.
    Execute,
}

/// Whose network the process has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Network {
    None,
    Host,
}

/// Where the new root is put together, out of sight: any folder that is there will do.
const PLACES: [&str; 4] = ["/tmp", "/run", "/proc", "/dev"];

/// Moves the process to namespaces of its own.
///
/// `Some` is what the host does not allow; the process sees what it saw before then.
///
/// # Errors
/// When the process is left in a user namespace in which it is nobody.
pub(super) fn enter(visible: &[Visible], network: Network) -> Result<Option<String>, ConfineError> {
    let own = match unshare(network) {
        Ok(own) => own,
        Err(missing) => return missing.unless_ours(),
    };
    if let Own::User(user, group) = own {
        map(user, group).map_err(|error| ConfineError::Namespaces(error.to_string()))?;
    }
    match enter_root(visible) {
        Ok(()) => Ok(None),
        Err(missing) => missing.unless_ours(),
    }
}

/// What could not be done, and why.
#[derive(Debug)]
struct Missing {
    why: String,
    /// This process has not enough memory or descriptors: that says nothing about the host.
    is_ours: bool,
}

impl Missing {
    fn new(what: impl std::fmt::Display, error: &io::Error) -> Self {
        let ours = [libc::EMFILE, libc::ENFILE, libc::ENOMEM];
        let is_ours = error.raw_os_error().is_some_and(|n| ours.contains(&n));
        Self {
            why: format!("{what}: {error}"),
            is_ours,
        }
    }

    fn unless_ours(self) -> Result<Option<String>, ConfineError> {
        match self.is_ours {
            true => Err(ConfineError::Namespaces(self.why)),
            false => Ok(Some(self.why)),
        }
    }
}

impl From<&str> for Missing {
    fn from(why: &str) -> Self {
        Self {
            why: why.to_owned(),
            is_ours: false,
        }
    }
}

/// A process that shares nothing but its threads' memory with others has no other thread.
pub(super) fn alone() -> io::Result<()> {
    unshare_all(libc::CLONE_THREAD)
}

/// What the process starts from now on has process numbers of its own.
pub(super) fn number_anew() -> io::Result<()> {
    unshare_all(libc::CLONE_NEWPID)
}

/// Has a root folder of its own with what is visible in it.
fn enter_root(visible: &[Visible]) -> Result<(), Missing> {
    // One that has been removed, or is not to be seen, is nowhere to go back to.
    let folder = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let sources = sources(visible)?;
    if sources.iter().any(|source| source.at == Path::new("/")) {
        // Everything was named.
        return Ok(());
    }
    // Nothing that is mounted from here on is seen by others.
    let private = libc::MS_REC | libc::MS_PRIVATE;
    mount(None, "/", private).map_err(failed("mounts of its own"))?;
    let place = PLACES.into_iter().find(|place| Path::new(place).is_dir());
    let place = place.ok_or("there is no folder to mount on")?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(Some("tmpfs"), place, flags).map_err(failed("a file system of its own"))?;
    let entered = std::env::set_current_dir(place)
        .map_err(failed("a root of its own"))
        .and_then(|()| fill(&sources, &folder))
        .and_then(|()| pivot().map_err(failed("a root of its own")));
    if entered.is_err() {
        // As it was: files are opened by the rules of Landlock then.
        let _ = std::env::set_current_dir(&folder);
        let _ = unmount(place);
        return entered;
    }
    let _ = std::env::set_current_dir(&folder);
    set_attributes(None, mount_h::RDONLY).map_err(failed("a root that is not written to"))
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Missing {
    move |error| Missing::new(what, &error)
}

/// System V IPC goes with the mounts.
fn unshare(network: Network) -> Result<Own, Missing> {
    let mut own = libc::CLONE_NEWNS | libc::CLONE_NEWIPC;
    if network == Network::None {
        own |= libc::CLONE_NEWNET;
    }
    let privileged =
        capabilities(None).is_ok_and(|held| held.effective.contains(CapabilitySet::SYS_ADMIN));
    if privileged {
        unshare_all(own).map_err(failed("namespaces"))?;
        return Ok(Own::Host);
    }
    if network == Network::Host {
        return Err("namespaces: no CAP_SYS_ADMIN".into());
    }
    // There are hosts that give a user namespace and nothing that can be done in it; there is no way back out of one.
    try_in_child()?;
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    unshare_all(own | libc::CLONE_NEWUSER).map_err(failed("user namespaces"))?;
    Ok(Own::User(user, group))
}

/// Whose namespaces they are.
enum Own {
    /// The host's root's.
    Host,
    /// A user namespace's, in which this user and group are to be.
    User(u32, u32),
}

/// The same user and group inside as outside, and no other.
fn map(user: u32, group: u32) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// Whether a process may mount in a user namespace of its own, found out by one that ends after it.
fn try_in_child() -> Result<(), Missing> {
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    let attempt = || -> io::Result<()> {
        unshare_all(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)?;
        map(user, group)?;
        mount(None, "/", libc::MS_REC | libc::MS_PRIVATE)
    };
    // SAFETY: the process has one thread. The child makes its attempt and ends; nothing of the parent's is dropped or
    // flushed there.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let status = attempt().map_or_else(|error| error.raw_os_error().unwrap_or(1), |()| 0);
        // SAFETY: as above.
        unsafe { libc::_exit(status & 0x7f) };
    }
    let mut status = 0;
    // SAFETY: it waits for the child of above, and `status` lives until it returns.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    match (
        waited == pid,
        libc::WIFEXITED(status),
        libc::WEXITSTATUS(status),
    ) {
        (true, true, 0) => Ok(()),
        (true, true, error) => Err(failed("user namespaces")(io::Error::from_raw_os_error(
            error,
        ))),
        _ => Err("user namespaces: no process to try them in".into()),
    }
}

fn unshare_all(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: the process has one thread, so nothing that it shares with another is taken from that.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A copy of a mount, and where it goes.
struct Source {
    mount: OwnedFd,
    at: PathBuf,
    is_folder: bool,
}

/// Copies of what stays visible, by the names that were given and by those without symbolic links; what holds others
/// comes first.
fn sources(visible: &[Visible]) -> Result<Vec<Source>, Missing> {
    let mut named = Vec::new();
    for Visible { path, access } in visible {
        let shown = |error: io::Error| Missing::new(path.display(), &error);
        if !path.exists() {
            // Whoever opens it will say so.
            continue;
        }
        let absolute = std::path::absolute(path).map_err(shown)?;
        let real = fs::canonicalize(path).map_err(shown)?;
        named.extend([(absolute, *access), (real, *access)]);
    }
    named.sort();
    named.dedup();
    let copied = named.into_iter().map(|(at, access)| copy(at, access));
    copied.collect()
}

fn copy(at: PathBuf, access: Access) -> Result<Source, Missing> {
    let shown = |error: io::Error| Missing::new(at.display(), &error);
    let metadata = fs::metadata(&at).map_err(shown)?;
    let path = c_string(&at);
    // What is mounted below belongs to it, and a user may not take that away.
    let flags = mount_h::OPEN_TREE_CLONE
        | mount_h::AT_RECURSIVE.unsigned_abs()
        | libc::O_CLOEXEC.unsigned_abs();
    // SAFETY: `path` ends in a zero and lives until the call returns.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(shown(io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just given this descriptor to us, and nobody else knows it.
    let mount = unsafe { OwnedFd::from_raw_fd(fd) };
    // Devices stay devices: an image may be one, and there are folders of them.
    let attributes = match access {
        Access::Read => mount_h::NOSUID | mount_h::NOEXEC | mount_h::RDONLY,
        Access::Write => mount_h::NOSUID | mount_h::NOEXEC,
        Access::Execute => mount_h::NOSUID | mount_h::NODEV | mount_h::RDONLY,
    };
    set_attributes(Some(&mount), attributes).map_err(shown)?;
    Ok(Source {
        mount,
        at,
        is_folder: metadata.is_dir(),
    })
}

/// Puts what stays visible under the current folder, which is to be the root, and makes `current`, so that relative
/// names still hold.
fn fill(sources: &[Source], current: &Path) -> Result<(), Missing> {
    // What a user has for new files must not close the folders that lead to what may be seen.
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let filled = fill_root(sources, current);
    rustix::process::umask(umask);
    filled
}

fn fill_root(sources: &[Source], current: &Path) -> Result<(), Missing> {
    for source in sources {
        let shown = |error: io::Error| Missing::new(source.at.display(), &error);
        let at = below(&source.at);
        let folder = if source.is_folder {
            Some(at.as_path())
        } else {
            at.parent()
        };
        make_folder(folder.unwrap_or(Path::new("."))).map_err(shown)?;
        if !source.is_folder && fs::symlink_metadata(&at).is_err() {
            fs::File::create(&at).map_err(shown)?;
        }
        move_mount(&source.mount, &at).map_err(shown)?;
    }
    make_folder(&below(current)).map_err(failed("the current folder"))
}

/// An absolute path, from the new root.
fn below(path: &Path) -> PathBuf {
    let mut below = PathBuf::from(".");
    below.extend(path.components().filter(|part| *part != Component::RootDir));
    below
}

fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
}

/// Makes the current folder, which a file system is mounted on, the root.
fn pivot() -> io::Result<()> {
    let here = c".";
    // SAFETY: the paths end in a zero and live until the call returns. The old root is put over the new one and taken
    // away there, as pivot_root(2) describes.
    let pivoted = unsafe { libc::syscall(libc::SYS_pivot_root, here.as_ptr(), here.as_ptr()) };
    if pivoted == 0 {
        unmount(".")?;
        return std::env::set_current_dir("/");
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EINVAL) {
        return Err(error);
    }
    // A host that runs from its initramfs cannot leave that root: it is covered.
    cover()
}

fn cover() -> io::Result<()> {
    let (here, root) = (c".", c"/");
    let nothing = std::ptr::null();
    // SAFETY: the paths end in a zero and live until the calls return, and a mount that is moved needs no other
    // argument.
    let covered = unsafe {
        libc::mount(
            here.as_ptr(),
            root.as_ptr(),
            nothing,
            libc::MS_MOVE,
            nothing.cast(),
        ) == 0
            && libc::chroot(here.as_ptr()) == 0
    };
    match covered {
        true => std::env::set_current_dir("/"),
        false => Err(io::Error::last_os_error()),
    }
}

fn mount(kind: Option<&str>, at: &str, flags: libc::c_ulong) -> io::Result<()> {
    let kind = c_string(Path::new(kind.unwrap_or("none")));
    let at = c_string(Path::new(at));
    let options = c"mode=0755";
    // SAFETY: the strings end in a zero and live until the call returns.
    let mounted = unsafe {
        libc::mount(
            kind.as_ptr(),
            at.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    };
    match mounted {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn unmount(at: &str) -> io::Result<()> {
    let at = c_string(Path::new(at));
    // SAFETY: the path ends in a zero and lives until the call returns.
    match unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn move_mount(mount: &OwnedFd, at: &Path) -> io::Result<()> {
    let (empty, at) = (c"", c_string(at));
    // SAFETY: the paths end in a zero and live until the call returns.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_FDCWD,
            at.as_ptr(),
            mount_h::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    match moved {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Adds attributes to a mount, or to the root's.
fn set_attributes(mount: Option<&OwnedFd>, attributes: u64) -> io::Result<()> {
    let path = if mount.is_some() { c"" } else { c"/" };
    let fd = mount.map_or(libc::AT_FDCWD, AsRawFd::as_raw_fd);
    let flags = if mount.is_some() {
        libc::AT_EMPTY_PATH | mount_h::AT_RECURSIVE
    } else {
        0
    };
    let change = [attributes, 0, 0, 0];
    // SAFETY: the path ends in a zero, `change` is a `struct mount_attr`, and both live until the call returns.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            path.as_ptr(),
            flags,
            change.as_ptr(),
            size_of_val(&change),
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A path of the command line holds no zero; one that does names nothing.
fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

/// `linux/mount.h`, where the libc crate has it not.
mod mount_h {
    pub(super) const RDONLY: u64 = 0x1;
    pub(super) const NOSUID: u64 = 0x2;
    pub(super) const NODEV: u64 = 0x4;
    pub(super) const NOEXEC: u64 = 0x8;
    pub(super) const OPEN_TREE_CLONE: u32 = 1;
    pub(super) const AT_RECURSIVE: i32 = 0x8000;
    pub(super) const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
}
