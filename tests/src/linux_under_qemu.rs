//! A Linux guest under QEMU, on backends of ours: a frontend that is not ours, and the word of the guest on its
//! console.
#![allow(clippy::unwrap_used, clippy::panic)] // for tests: one that cannot go on has failed

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::guest_linux::CMDLINE;

/// QEMU with a Linux guest of two processors and 256 MiB of shared memory; ends with the value.
#[derive(Debug)]
pub struct LinuxUnderQemu {
    qemu: Child,
    console: BufReader<ChildStdout>,
    story: String,
}

impl LinuxUnderQemu {
    /// Starts it with these further arguments: its devices.
    pub fn start(kernel: &Path, initramfs: &Path, devices: &[String]) -> Self {
        let mut command = Command::new("qemu-system-x86_64");
        command.args("-nodefaults -no-user-config -no-reboot -display none".split(' '));
        command
            .args("-machine q35,memory-backend=ram -accel tcg -cpu max -smp 2 -m 256M".split(' '));
        command.args(["-object", "memory-backend-memfd,id=ram,size=256M,share=on"]);
        command.arg("-kernel").arg(kernel);
        command.arg("-initrd").arg(initramfs);
        command.args(["-append", CMDLINE, "-serial", "stdio"]);
        let mut qemu = command
            .args(devices)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let console = BufReader::new(qemu.stdout.take().unwrap());
        Self {
            qemu,
            console,
            story: String::new(),
        }
    }

    /// What the guest says next, `None` at its end.
    pub fn next_word(&mut self) -> Option<String> {
        loop {
            let mut line = Vec::new();
            if self.console.read_until(b'\n', &mut line).unwrap() == 0 {
                return None;
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            self.story += &format!("  {line}\n");
            if let Some((_, word)) = line.split_once("guest: ") {
                assert!(!word.starts_with("FAILED"), "{}", self.story);
                return Some(word.to_owned());
            }
        }
    }

    /// The next word must be this one.
    pub fn expect(&mut self, wanted: &str) {
        let said = self.next_word();
        assert_eq!(said.as_deref(), Some(wanted), "{}", self.story);
    }

    /// The guest says nothing more, and QEMU ends well.
    pub fn expect_end(&mut self) {
        assert_eq!(self.next_word(), None, "{}", self.story);
        assert!(self.qemu.wait().unwrap().success(), "{}", self.story);
    }
}

impl Drop for LinuxUnderQemu {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
