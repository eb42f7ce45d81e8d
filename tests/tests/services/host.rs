//! A host of its own whose first process is systemd, in namespaces of this machine, with Bulkhead's units installed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bulkhead_tests::guest::kernel;
use bulkhead_tests::workplace::Workplace;

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_millis(50);

/// The folder of the units.
pub(crate) fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmm/cli/systemd")
}

pub(crate) struct Host {
    unshare: Child,
    /// systemd, as this machine numbers it.
    init: u32,
    _folder: tempfile::TempDir,
}

/// What a unit is doing.
#[derive(Debug)]
pub(crate) struct Now {
    pub(crate) is_active: bool,
    pub(crate) pid: String,
}

impl Host {
    /// Boots it.
    pub(crate) fn boot() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().with_extension("log");
        let root = folder.path().join("host");
        fs::create_dir(&root).unwrap();
        let programs = Workplace::find().unwrap().programs;
        let unshare = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--cgroup",
                "--uts",
                "--ipc",
                "--net",
                "--fork",
                "--kill-child",
            ])
            .args([
                "sh".as_ref(),
                Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("tests/services/boot.sh")
                    .as_os_str(),
            ])
            .args([&root, &programs, &units(), &kernel().to_owned()])
            .stdin(Stdio::null())
            .stdout(File::create(&log).unwrap())
            .stderr(File::options().append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        let mut host = Self {
            unshare,
            init: 0,
            _folder: folder,
        };
        host.wait_for_boot(&log);
        fs::remove_file(&log).unwrap();
        host
    }

    fn wait_for_boot(&mut self, log: &Path) {
        let outer = self.unshare.id();
        let start = Instant::now();
        loop {
            let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"));
            self.init = children.unwrap_or_default().trim().parse().unwrap_or(0);
            let is_up = self.init != 0
                && self
                    .command("systemctl is-active --quiet basic.target")
                    .output()
                    .unwrap()
                    .status
                    .success();
            if is_up {
                return;
            }
            let ended = self.unshare.try_wait().unwrap();
            let is_late = start.elapsed() > PATIENCE;
            assert!(
                ended.is_none() && !is_late,
                "{}",
                fs::read_to_string(log).unwrap()
            );
            sleep(TICK);
        }
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.init))
            .args([
                "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--root", "--wd",
            ])
            .args([
                "env",
                "-i",
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                "sh",
                "-c",
                script,
            ])
            .stdin(Stdio::null());
        command
    }

    /// Starts a script there.
    pub(crate) fn start(&self, script: &str) -> Child {
        self.command(script).spawn().unwrap()
    }

    /// Waits for the end of a script, which must succeed.
    #[allow(clippy::unused_self, reason = "it is this host's")]
    pub(crate) fn ended(&self, mut script: Child) {
        assert!(script.wait().unwrap().success());
    }

    /// What a script prints there, which must succeed.
    pub(crate) fn succeeds(&self, script: &str) -> String {
        let output = self.command(script).output().unwrap();
        if !output.status.success() {
            let journal = self
                .command("journalctl --no-pager -u 'bulkhead*' | tail -n 60")
                .output();
            let journal = String::from_utf8_lossy(&journal.unwrap().stdout).into_owned();
            panic!("{script}: {output:?}\n{journal}");
        }
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a script says on standard error there, which must fail.
    pub(crate) fn fails(&self, script: &str) -> String {
        let output = self.command(script).output().unwrap();
        assert!(!output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        let value = self.succeeds(&format!(
            "systemctl show --value --property={name} '{unit}'"
        ));
        value.trim().to_owned()
    }

    /// Waits until a unit is as it must be.
    pub(crate) fn until(&self, unit: &str, is_so: impl Fn(&Now) -> bool) {
        let start = Instant::now();
        loop {
            let now = Now {
                is_active: self.property(unit, "ActiveState") == "active",
                pid: self.property(unit, "MainPID"),
            };
            if is_so(&now) {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{unit}: {now:?}\n{}",
                self.succeeds("journalctl --no-pager -u 'bulkhead*' | tail -n 60")
            );
            sleep(TICK);
        }
    }

    /// A file there, as this machine names it.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // All processes of the host end with its first.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}
