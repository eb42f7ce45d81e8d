//! `--br=NAME --fd=N [--use-vnet]`: what `qemu-bridge-helper` does, for programs that start it that way.
//!
//! The program creates one TAP device, makes it a port of an existing bridge, sends it over an inherited socket, and
//! ends. A file that only root can write says which bridges may be joined, in the syntax of QEMU's `bridge.conf`:
//! `allow NAME`, `allow all`, `deny NAME`, `deny all`, `include FILE`. A bridge must be allowed and not denied. So the
//! program can be set-user-ID root for this use; then it does nothing else.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tap::{InterfaceName, Options, Tap};

use crate::inherited;
use crate::link::Links;

/// The file that says which bridges a user may join, in the syntax of QEMU's `bridge.conf`.
const RULES: &str = "/etc/bulkhead/bridge.conf";
/// How deep `include` may nest.
const MAX_INCLUDE_DEPTH: u32 = 8;

/// Makes a TAP device on `bridge` and sends it over the inherited socket `fd`.
pub(crate) fn run(bridge: &InterfaceName, fd: RawFd, vnet: bool) -> Result<()> {
    let mut access = Access::default();
    access
        .read(Path::new(RULES), bridge.as_str(), 0)
        .with_context(|| format!("bridge {bridge} may not be joined: cannot read {RULES}"))?;
    if access.denied || !access.allowed {
        bail!("bridge {bridge} may not be joined: {RULES} does not allow it");
    }
    let socket = inherited::duplicate(fd).with_context(|| format!("--fd {fd}"))?;
    let mut links = Links::open().context("cannot open a netlink socket")?;
    let link = links
        .find(bridge)?
        .ok_or_else(|| anyhow!("there is no bridge {bridge} on this host"))?;
    if !link.is_bridge {
        bail!("{bridge} is not a bridge");
    }
    let options = if vnet {
        Options::VNET_HDR
    } else {
        Options::empty()
    };
    let tap = Tap::create(&InterfaceName::new("tap")?, options)?;
    // A high address: a bridge without an address of its own takes the lowest of its ports.
    let [_, a, b, c, d, e] = tap.mac()?;
    links
        .attach(
            tap.name(),
            link.index,
            [0xfe, a, b, c, d, e],
            link.mtu,
            None,
        )
        .with_context(|| format!("cannot make {} a port of {bridge}", tap.name()))?;
    hand_over(&socket, &tap).context("cannot hand over the TAP device")
}

/// Sends one byte and the descriptor with it, as QEMU expects.
fn hand_over(socket: &OwnedFd, tap: &Tap) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [tap.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&files));
    sendmsg(
        socket,
        &[IoSlice::new(&[0])],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
}

/// What the rules say about one bridge.
#[derive(Debug, Default, PartialEq, Eq)]
struct Access {
    allowed: bool,
    denied: bool,
}

impl Access {
    fn read(&mut self, path: &Path, bridge: &str, depth: u32) -> Result<()> {
        let text = std::fs::read_to_string(path)?;
        for (number, line) in text.lines().enumerate() {
            let at = || format!("{}:{}", path.display(), number.saturating_add(1));
            let mut words = line
                .split('#')
                .next()
                .unwrap_or_default()
                .split_whitespace();
            let Some(word) = words.next() else { continue };
            let (Some(value), None) = (words.next(), words.next()) else {
                bail!("{}: {word} takes one word", at());
            };
            let concerned = value == "all" || value == bridge;
            match word {
                "allow" => self.allowed |= concerned,
                "deny" => self.denied |= concerned,
                "include" if depth < MAX_INCLUDE_DEPTH => {
                    self.read(Path::new(value), bridge, depth.saturating_add(1))
                        .with_context(at)?;
                }
                "include" => bail!("{}: too many files include each other", at()),
                _ => bail!("{}: {word:?} is not one of allow, deny, include", at()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(files: &[(&str, &str)], bridge: &str) -> Result<bool> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let text = text.replace("HERE", folder.path().to_str().unwrap());
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let mut access = Access::default();
        access.read(&folder.path().join("bridge.conf"), bridge, 0)?;
        Ok(access.allowed && !access.denied)
    }

    #[test]
    fn what_is_not_allowed_is_denied_and_a_denial_is_final() {
        for (rules, allowed) in [
            ("", false),
            ("allow br0", true),
            ("allow br1", false),
            ("allow br00", false),
            ("allow all", true),
            ("# allow br0", false),
            ("  allow\tbr0 # of the house", true),
            ("allow all\ndeny br0", false),
            ("deny br0\nallow br0", false),
            ("deny all\nallow br0", false),
            ("allow all\ndeny br1", true),
        ] {
            assert_eq!(
                access(&[("bridge.conf", rules)], "br0").unwrap(),
                allowed,
                "{rules:?}"
            );
        }
    }

    #[test]
    fn files_include_others_but_not_for_ever() {
        let alice = ("alice.conf", "allow br0");
        assert!(access(&[("bridge.conf", "include HERE/alice.conf"), alice], "br0").unwrap());
        assert!(access(&[("bridge.conf", "include HERE/bridge.conf")], "br0").is_err());
        assert!(access(&[("bridge.conf", "include HERE/missing")], "br0").is_err());
    }

    #[test]
    fn nonsense_allows_nothing() {
        for rules in [
            "allow",
            "allow br0 br1",
            "permit br0",
            "allow br0\nnonsense",
        ] {
            assert!(
                access(&[("bridge.conf", rules)], "br0").is_err(),
                "{rules:?}"
            );
        }
    }
}
