//! `net.ipv4.ip_forward`: whether this host forwards IPv4 packets between its interfaces.
//!
//! Networks whose mode is routed need it. The helper switches it on when it is off, and off again at its end if it was
//! the helper that had switched it on. It cannot know whether another program has come to need it meanwhile. An
//! administrator who wants it on for good sets it in sysctl.d, so that it is on before the helper starts, and stays on.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};

use anyhow::{Context, Result};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// The open file, by which the setting can be restored after confinement.
#[derive(Debug)]
pub(crate) struct Forwarding(File);

impl Forwarding {
    pub(crate) fn open() -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(IP_FORWARD);
        Ok(Forwarding(
            file.with_context(|| format!("cannot open {IP_FORWARD}"))?,
        ))
    }

    pub(crate) fn is_on(&mut self) -> Result<bool> {
        let mut text = String::new();
        self.0
            .rewind()
            .and_then(|()| self.0.read_to_string(&mut text))
            .with_context(|| format!("cannot read {IP_FORWARD}"))?;
        Ok(text.trim() != "0")
    }

    pub(crate) fn set(&mut self, on: bool) -> Result<()> {
        let text: &[u8] = if on { b"1\n" } else { b"0\n" };
        self.0
            .rewind()
            .and_then(|()| self.0.write_all(text))
            .with_context(|| format!("cannot write {IP_FORWARD}"))
    }
}
