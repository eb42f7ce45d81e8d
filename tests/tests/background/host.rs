//! A host of the test's own, on which guests run in the background, and the `bulkhead` commands of its users.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bulkhead_tests::guest::{ip, kernel};
use bulkhead_tests::host_state;
use bulkhead_tests::workplace::Workplace;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// After this a test gives up on whatever it waits for.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Host;

impl Host {
    /// Gives the namespaces folders of their own for definitions and logs.
    pub(crate) fn new() -> Self {
        for (lower, name) in [("/etc", "etc"), ("/var/log", "log")] {
            let folder = Path::new("/run/overlay").join(name);
            std::fs::create_dir_all(folder.join("upper")).unwrap();
            std::fs::create_dir_all(folder.join("work")).unwrap();
            let shown = folder.display();
            let layers = format!("lowerdir={lower},upperdir={shown}/upper,workdir={shown}/work");
            let mounted = Command::new("mount")
                .args(["-t", "overlay", "overlay", "-o", &layers, lower])
                .status();
            assert!(mounted.unwrap().success(), "mount over {lower}");
        }
        ip("link set lo up");
        Self
    }

    /// Defines a guest by its file. `more` are lines of it.
    pub(crate) fn define(&self, name: &str, test: &str, more: &str) {
        let kernel = kernel().display();
        let folder = Path::new("/etc/bulkhead/guests");
        std::fs::create_dir_all(folder).unwrap();
        let text = format!(
            "name = \"{name}\"\nmemory = \"64M\"\nkernel = \"{kernel}\"\ncmdline = \"test={test}\"\n{more}\n"
        );
        std::fs::write(folder.join(name).with_extension("toml"), text).unwrap();
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let program = Workplace::find().unwrap().program("bulkhead").unwrap();
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// What a command prints, which must succeed and warn of nothing.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let output = self.output(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() && said.is_empty(),
            "{words:?}: {output:?}"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// The error of a command, which must fail with status 1.
    pub(crate) fn refused(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{words:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// The names of the guests that run.
    pub(crate) fn running(&self) -> Vec<String> {
        let names = self.ok(&["-q", "list", "--name"]);
        names.lines().map(str::to_owned).collect()
    }

    /// The state as the supervisor has noted it.
    pub(crate) fn state(&self, name: &str) -> Value {
        let path = Path::new("/run/bulkhead").join(name).join("state.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    pub(crate) fn supervisor(&self, name: &str) -> Pid {
        pid(&self.state(name)["supervisor"]["pid"])
    }

    /// The process of a guest with this name.
    pub(crate) fn process(&self, guest: &str, name: &str) -> Option<Pid> {
        let state = self.state(guest);
        let mut processes = state["processes"].as_array().unwrap().iter();
        let process = processes.find(|process| process["name"] == name).unwrap();
        process["id"]
            .is_object()
            .then(|| pid(&process["id"]["pid"]))
    }

    /// Kills a process, and waits until nobody sees it any more.
    pub(crate) fn kill(&self, which: Pid) {
        kill_process(which, Signal::KILL).unwrap();
        let number = which.as_raw_nonzero().get();
        eventually("a killed process ends", || !runs(number.unsigned_abs()));
    }

    /// Waits until a guest has written a line to its console.
    pub(crate) fn wait_for_console(&self, name: &str, line: &str) {
        eventually(&format!("{name} says {line}"), || {
            self.ok(&["logs", "--console", name]).contains(line)
        });
    }

    /// No process of ours runs, and no folder of a guest is left.
    pub(crate) fn nothing_left(&self) {
        eventually("all processes end", || {
            let all = host_state::processes().unwrap().into_iter();
            let mut ours = all.filter(|(_, name)| name.starts_with("bulkhead"));
            !ours.any(|(number, _)| runs(number))
        });
        let left: Vec<_> = std::fs::read_dir("/run/bulkhead")
            .map(|entries| entries.map(|entry| entry.unwrap().file_name()).collect())
            .unwrap_or_default();
        assert!(left.iter().all(|name| name == ".ended"), "{left:?}");
    }
}

/// Whether a process has not ended. This namespace's first process does not wait for those that have.
fn runs(number: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{number}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

fn pid(value: &Value) -> Pid {
    let number = i32::try_from(value.as_i64().unwrap()).unwrap();
    Pid::from_raw(number).unwrap()
}

pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
