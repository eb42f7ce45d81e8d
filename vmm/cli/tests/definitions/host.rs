//! A host with an /etc of the test's own, in which `bulkhead` runs as root.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use std::io::Write;

pub(crate) const OWN: &str = env!("CARGO_BIN_EXE_bulkhead");

/// The host. Its folder is removed in the end.
pub(crate) struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("etc")).unwrap();
        Self { folder }
    }

    /// A folder for files of the test.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The file of a guest's definition.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        let guests = self.folder().join("etc/bulkhead/guests");
        guests.join(format!("{name}.toml"))
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap()
    }

    /// A command on this host.
    pub(crate) fn command<W: Into<OsString>>(&self, words: impl IntoIterator<Item = W>) -> Command {
        let mount = "mount --bind \"$0/etc\" /etc && exec \"$@\"";
        self.in_namespace(mount, words)
    }

    /// A command after `script`, in a mount namespace of its own.
    pub(crate) fn in_namespace<W: Into<OsString>>(
        &self,
        script: &str,
        words: impl IntoIterator<Item = W>,
    ) -> Command {
        let mut command = Command::new("unshare");
        // A user is root in a user namespace.
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command
            .args(["--mount", "sh", "-c", script])
            .arg(self.folder())
            .args(words.into_iter().map(Into::into))
            .current_dir(self.folder())
            .env("TMPDIR", self.folder())
            .env_remove("VISUAL")
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// `bulkhead` with these words.
    pub(crate) fn bulkhead(&self, words: &[&str]) -> Command {
        self.command([OWN].iter().chain(words))
    }

    /// What `bulkhead` prints, which must succeed.
    pub(crate) fn prints(&self, words: &[&str]) -> String {
        let output = self.bulkhead(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        assert_eq!(output.stderr, b"", "{words:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The one line in which `bulkhead` says what is wrong.
    pub(crate) fn refuses(&self, words: &[&str]) -> String {
        refusal(&self.bulkhead(words).output().unwrap())
    }

    /// Defines a guest by a text.
    pub(crate) fn define(&self, text: &str) -> Output {
        let mut command = self.bulkhead(&["define", "-"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // It may end before it has read all.
        let _ = stdin.write_all(text.as_bytes());
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    /// Defines a guest that has only a name and a kernel, and these lines.
    pub(crate) fn guest(&self, name: &str, more: &str) {
        let text = format!("# ours\nname = \"{name}\" # its name\nkernel = \"/k\"\n{more}");
        let output = self.define(&text);
        assert!(output.status.success(), "{output:?}");
    }
}

pub(crate) fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let lines = String::from_utf8(output.stderr.clone()).unwrap();
    let line = lines
        .strip_prefix("error: ")
        .unwrap_or_else(|| panic!("{lines}"));
    let line = line.strip_suffix('\n').unwrap();
    assert!(!line.contains('\n'), "{lines}");
    line.to_owned()
}
