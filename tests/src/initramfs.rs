//! Initial file systems as `newc` cpio archives, made without root: owners and device nodes are only entries.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// What an entry of the archive is.
enum Entry {
    Directory { mode: u32 },
    File { mode: u32, data: Vec<u8> },
    Symlink { target: String },
    CharacterDevice { major: u32, minor: u32 },
}

/// A root file system in the making. Paths are absolute; parent directories appear by themselves.
#[derive(Default)]
pub struct Initramfs {
    /// Sorted, so a directory comes before what is in it.
    entries: BTreeMap<String, Entry>,
}

impl Initramfs {
    /// A root with the directories every Linux expects and a console to print on.
    pub fn new() -> Self {
        let mut root = Self::default();
        for (directory, mode) in [
            ("/proc", 0o555),
            ("/sys", 0o555),
            ("/dev", 0o755),
            ("/run", 0o755),
            ("/tmp", 0o1777),
        ] {
            root.directory(directory, mode);
        }
        root.insert(
            "/dev/console",
            Entry::CharacterDevice { major: 5, minor: 1 },
        );
        root
    }

    /// Adds a directory with `mode`'s permission bits.
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.insert(path, Entry::Directory { mode });
    }

    /// Adds a file of its own content.
    pub fn file(&mut self, path: &str, mode: u32, data: impl Into<Vec<u8>>) {
        self.insert(
            path,
            Entry::File {
                mode,
                data: data.into(),
            },
        );
    }

    /// Adds a copy of a file of this machine, readable and executable by all.
    pub fn copy(&mut self, path: &str, source: &Path) -> Result<()> {
        let data = std::fs::read(source).with_context(|| source.display().to_string())?;
        self.file(path, 0o755, data);
        Ok(())
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.insert(
            path,
            Entry::Symlink {
                target: target.to_owned(),
            },
        );
    }

    /// Adds links to the busybox in `folder` for each of its applets that is in none of `folders` yet.
    pub fn busybox_links(&mut self, folder: &str, folders: &[&str]) -> Result<()> {
        let output = Command::new("/usr/bin/busybox")
            .arg("--list")
            .output()
            .context("busybox")?;
        for applet in String::from_utf8_lossy(&output.stdout).lines() {
            if !folders
                .iter()
                .any(|folder| self.contains(&format!("{folder}/{applet}")))
            {
                self.symlink(&format!("{folder}/{applet}"), "busybox");
            }
        }
        Ok(())
    }

    /// Whether something is at `path` already.
    pub fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        debug_assert!(path.starts_with('/'));
        if let Some((parent, _)) = path.rsplit_once('/')
            && !parent.is_empty()
            && !self.contains(parent)
        {
            self.directory(parent, 0o755);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Writes the archive to a file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let file = std::fs::File::create(path).with_context(|| path.display().to_string())?;
        let mut out = io::BufWriter::with_capacity(1 << 20, file);
        self.write(&mut out)
            .and_then(|()| out.flush())
            .with_context(|| path.display().to_string())
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for (inode, (path, entry)) in (1..).zip(&self.entries) {
            let name = path.trim_start_matches('/');
            match entry {
                Entry::Directory { mode } => {
                    record(out, inode, name, 0o040_000 | mode, (0, 0), &[])?
                }
                Entry::File { mode, data } => {
                    record(out, inode, name, 0o100_000 | mode, (0, 0), data)?
                }
                Entry::Symlink { target } => {
                    record(out, inode, name, 0o120_777, (0, 0), target.as_bytes())?
                }
                Entry::CharacterDevice { major, minor } => {
                    record(out, inode, name, 0o020_600, (*major, *minor), &[])?;
                }
            }
        }
        record(out, 0, "TRAILER!!!", 0, (0, 0), &[])
    }
}

/// One header, name and content, each padded to four bytes
/// (`Documentation/driver-api/early-userspace/buffer-format.rst`).
fn record(
    out: &mut impl Write,
    inode: u32,
    name: &str,
    mode: u32,
    (major, minor): (u32, u32),
    data: &[u8],
) -> io::Result<()> {
    const PADDING: [u8; 3] = [0; 3];
    let size =
        u32::try_from(data.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let name_size = name.len() + 1;
    // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    write!(
        out,
        "070701{inode:08x}{mode:08x}{zero:08x}{zero:08x}{one:08x}{zero:08x}{size:08x}{zero:08x}{zero:08x}\
         {major:08x}{minor:08x}{name_size:08x}{zero:08x}{name}\0",
        zero = 0,
        one = 1,
    )?;
    out.write_all(&PADDING[..(110 + name_size).next_multiple_of(4) - (110 + name_size)])?;
    out.write_all(data)?;
    out.write_all(&PADDING[..data.len().next_multiple_of(4) - data.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn cpio_reads_back_what_was_put_in() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("a.cpio");
        let mut root = Initramfs::new();
        root.file("/etc/deep/hello", 0o640, "hello, world\n");
        root.symlink("/link", "etc/deep/hello");
        root.save(&archive).unwrap();

        let listing = Command::new("cpio")
            .args(["-itv", "--quiet"])
            .stdin(Stdio::from(std::fs::File::open(&archive).unwrap()))
            .output()
            .unwrap();
        let listing = String::from_utf8(listing.stdout).unwrap();
        let line = |end: &str| {
            listing
                .lines()
                .find(|line| line.ends_with(end))
                .unwrap()
                .to_owned()
        };
        assert!(
            line(" etc/deep/hello").starts_with("-rw-r-----   1 root     root           13"),
            "{listing}"
        );
        assert!(line(" link -> etc/deep/hello").starts_with('l'));
        assert!(line(" tmp").starts_with("drwxrwxrwt"));
        assert!(line(" etc").starts_with("drwxr-xr-x"));
        assert!(line(" dev/console").starts_with("crw------- "));

        let extract = Command::new("cpio")
            .args(["-i", "--quiet", "--to-stdout", "etc/deep/hello"])
            .stdin(Stdio::from(std::fs::File::open(&archive).unwrap()))
            .output()
            .unwrap();
        assert_eq!(extract.stdout, b"hello, world\n");
    }
}
