//! A host that runs from its initramfs: its root is the kernel's own file system (rootfs), which no process can leave
//! by `pivot_root`.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use rustix::fs::CWD;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};

/// `linux/magic.h`.
const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// Everything of this host, on its rootfs, for this process and its children. Undone when dropped.
pub(crate) struct Rootfs {
    /// And whether it was made for this.
    folders: Vec<(PathBuf, bool)>,
    links: Vec<PathBuf>,
}

impl Rootfs {
    /// Moves the process there. `None`, and a line that says so, where there is no rootfs below this host's root, or no
    /// right to go there.
    pub(crate) fn enter(test: &str) -> Option<Self> {
        let skipped = |why: &str| {
            eprintln!("skipped: {test}: {why}");
            None
        };
        if !rustix::process::geteuid().is_root() {
            return skipped("needs root");
        }
        // SAFETY: there is one thread.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).unwrap();
        let (folders, links) = top_level();
        let namespace = File::open("/proc/self/ns/mnt").unwrap();
        if unmount("/", UnmountFlags::DETACH).is_err() {
            return skipped("the root cannot be unmounted");
        }
        let kind = ThreadNameSpaceType::MOUNT;
        move_into_thread_name_spaces(namespace.as_fd(), kind).unwrap();
        let kind = rustix::fs::statfs("/").unwrap().f_type;
        if ![TMPFS_MAGIC, RAMFS_MAGIC].contains(&kind) {
            return skipped("there is no rootfs below the root");
        }
        let mut rootfs = Self {
            folders: Vec::new(),
            links: Vec::new(),
        };
        for (path, tree) in folders {
            // An initramfs may have left some.
            let made = fs::create_dir(&path).is_ok();
            rootfs.folders.push((path.clone(), made));
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(&tree, "", CWD, &path, flags).unwrap();
        }
        for (path, target) in links {
            if symlink(target, &path).is_ok() {
                rootfs.links.push(path);
            }
        }
        Some(rootfs)
    }
}

impl Drop for Rootfs {
    fn drop(&mut self) {
        std::env::set_current_dir("/").unwrap();
        for link in &self.links {
            let _ = fs::remove_file(link);
        }
        for (folder, made) in &self.folders {
            let _ = unmount(folder, UnmountFlags::DETACH);
            if *made {
                let _ = fs::remove_dir(folder);
            }
        }
    }
}

/// Copies of the mounts of all folders in the root folder, and the symbolic links there.
#[allow(clippy::type_complexity)]
fn top_level() -> (Vec<(PathBuf, OwnedFd)>, Vec<(PathBuf, PathBuf)>) {
    let (mut folders, mut links) = (Vec::new(), Vec::new());
    for entry in fs::read_dir("/").unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_symlink() {
            links.push((path.clone(), fs::read_link(path).unwrap()));
        } else if kind.is_dir() {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            folders.push((path.clone(), open_tree(CWD, &path, flags).unwrap()));
        }
    }
    (folders, links)
}
