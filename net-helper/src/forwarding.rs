//! Whether this host passes IPv4 packets on between its interfaces (`net.ipv4.ip_forward`).
//!
//! Networks that reach the world through this host need it. It is switched on when it is off, and switched off again at
//! the end only if it was this program that switched it on. Somebody else who comes to need it meanwhile cannot be told
//! from nobody: an administrator who wants it on for good says so in sysctl.d, and then it is on before this program
//! starts and stays on.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};

use anyhow::{Context, Result};

const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";

/// The switch, held open so that it can be set back after confinement.
#[derive(Debug)]
pub(crate) struct Forwarding(File);

impl Forwarding {
    pub(crate) fn open() -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(SWITCH);
        Ok(Forwarding(
            file.with_context(|| format!("cannot open {SWITCH}"))?,
        ))
    }

    pub(crate) fn is_on(&mut self) -> Result<bool> {
        let mut text = String::new();
        self.0
            .rewind()
            .and_then(|()| self.0.read_to_string(&mut text))
            .with_context(|| format!("cannot read {SWITCH}"))?;
        Ok(text.trim() != "0")
    }

    pub(crate) fn set(&mut self, on: bool) -> Result<()> {
        let text: &[u8] = if on { b"1\n" } else { b"0\n" };
        self.0
            .rewind()
            .and_then(|()| self.0.write_all(text))
            .with_context(|| format!("cannot write {SWITCH}"))
    }
}
