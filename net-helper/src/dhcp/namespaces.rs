//! Namespaces for dnsmasq and what starts it: files (this program, the system's read-only ones, and the folder of its leases), System V
//! IPC, and processes.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
    mount_change, mount_move, mount_remount, unmount,
};
use rustix::process::{PidfdFlags, chdir, chroot, getpid, pidfd_open, pivot_root};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};

use super::{Kept, privileges};

/// What programs need to start, and dnsmasq to know who it is and which servers to ask.
const SYSTEM: &[&str] = &["/usr", "/lib", "/lib64", "/etc"];
const DEVICES: &[&str] = &["/dev/null", "/dev/urandom"];

/// Where processes are started.
pub(super) struct Namespaces {
    /// This process, whose own PID namespace is where others than the keeper are started.
    own: OwnedFd,
    isolated: bool,
}

impl Namespaces {
    /// Enters namespaces of its own, if the host allows that.
    pub(super) fn enter(kept: &Kept<'_>) -> io::Result<Self> {
        let isolated = match unshare(UnshareFlags::NEWNS | UnshareFlags::NEWIPC) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => false,
            unshared => unshared.and_then(|()| change_root(kept)).map(|()| true)?,
        };
        Namespaces::inherit(isolated)
    }

    /// Those that the process was started in.
    pub(super) fn inherit(isolated: bool) -> io::Result<Self> {
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        Ok(Namespaces { own, isolated })
    }

    pub(super) fn is_isolated(&self) -> bool {
        self.isolated
    }

    /// The next process to be started is the first of a new PID namespace.
    pub(super) fn begin_keeper(&mut self) -> io::Result<()> {
        if !self.isolated {
            return Ok(());
        }
        privileges::with_raised(|| unshare(UnshareFlags::NEWPID))
    }

    /// Others are started in this process' own again.
    pub(super) fn end_keeper(&mut self) -> io::Result<()> {
        if !self.isolated {
            return Ok(());
        }
        let kind = ThreadNameSpaceType::PROCESS_ID;
        privileges::with_raised(|| Ok(move_into_thread_name_spaces(self.own.as_fd(), kind)?))
    }
}

/// This process has one thread, and its descriptors are never unshared.
#[expect(
    deprecated,
    reason = "the other one is for callers that unshare descriptors"
)]
fn unshare(what: UnshareFlags) -> io::Result<()> {
    Ok(rustix::thread::unshare(what)?)
}

/// Makes a root that has only what is needed, over the folder of the leases, and leaves the old one.
fn change_root(kept: &Kept<'_>) -> io::Result<()> {
    let closed = MountFlags::NOSUID | MountFlags::NODEV;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let root = kept.leases.parent().unwrap_or(Path::new("/"));
    // Below what is about to be covered.
    let (leases, program) = (File::open(kept.leases)?, File::open(kept.program)?);
    mount("tmpfs", root, "tmpfs", closed, c"mode=0755,size=64k")?;
    for path in SYSTEM.iter().map(Path::new) {
        take_along(root, path)?;
    }
    for path in DEVICES.iter().map(Path::new) {
        mount_bind(path, file_in(root, path)?)?;
    }
    // Where a symbolic link leads to, if that is the host's way to say which servers to ask.
    if let Ok(path) = fs::canonicalize("/etc/resolv.conf")
        && let Some(folder) = path.parent()
        && !SYSTEM.iter().any(|system| folder.starts_with(system))
    {
        take_along(root, folder)?;
    }
    if !below(root, kept.program).exists() {
        mount_bind(held(&program), file_in(root, kept.program)?)?;
    }
    let new = below(root, kept.leases);
    fs::create_dir_all(&new)?;
    mount_bind(held(&leases), &new)?;
    mount_remount(&new, MountFlags::BIND | closed | MountFlags::NOEXEC, c"")?;
    chdir(root)?;
    match pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH)?,
        // A host that runs from its initramfs cannot leave that root: it is covered.
        Err(Errno::INVAL) => {
            mount_move(".", "/")?;
            chroot(".")?;
        }
        Err(error) => return Err(error.into()),
    }
    chdir("/")?;
    Ok(mount_remount(
        "/",
        MountFlags::BIND | MountFlags::RDONLY | closed,
        c"",
    )?)
}

/// Has a folder of the host in the new root, too, to be read.
fn take_along(root: &Path, path: &Path) -> io::Result<()> {
    let new = below(root, path);
    match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(file) if file.is_symlink() => return symlink(fs::read_link(path)?, new),
        Ok(_) => {}
    }
    fs::create_dir_all(&new)?;
    // With what is mounted in it: containers do so with resolv.conf.
    mount_bind_recursive(path, &new)?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount_remount(&new, flags, c"")?)
}

/// An empty file in the new root, to be covered by another.
fn file_in(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let new = below(root, path);
    fs::create_dir_all(new.parent().unwrap_or(root))?;
    File::create(&new)?;
    Ok(new)
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn held(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
