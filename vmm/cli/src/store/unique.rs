//! No two guests of a host have the same UUID or MAC address.

use std::collections::HashMap;

use anyhow::{Context, bail};
use bulkhead_mac::MacAddr;
use rustix::rand::{GetRandomFlags, getrandom};
use uuid::Uuid;

use crate::guest::Definition;
use crate::guest::definition::VENDOR;

/// How often another address is made when the one made before is taken. With a thousand taken ones of 2^24, each is free
/// with a probability of 0.9999.
const TRIES: usize = 100;

/// The UUIDs and addresses of some guests, and whose they are.
#[derive(Debug, Default)]
pub(super) struct Taken {
    uuids: HashMap<Uuid, String>,
    macs: HashMap<MacAddr, String>,
}

impl Taken {
    pub(super) fn add(&mut self, guest: &Definition) {
        self.uuids.insert(guest.uuid(), guest.name.clone());
        let macs = guest.macs().map(|mac| (mac, guest.name.clone()));
        self.macs.extend(macs);
    }

    /// Checks that nothing of `guest` is another's.
    ///
    /// # Errors
    /// When it is, in libvirt's words.
    pub(super) fn check(&self, guest: &Definition) -> anyhow::Result<()> {
        let uuid = guest.uuid();
        if let Some(other) = self.uuids.get(&uuid) {
            bail!("domain '{other}' is already defined with uuid {uuid}");
        }
        for mac in guest.macs() {
            if let Some(other) = self.macs.get(&mac) {
                bail!(
                    "domain '{other}' already has the MAC address {mac}: leave it out, and 'bulkhead define' makes another one"
                );
            }
        }
        Ok(())
    }

    /// A UUID that nobody has.
    pub(super) fn free_uuid(&self) -> anyhow::Result<Uuid> {
        for _ in 0..TRIES {
            let uuid = uuid::Builder::from_random_bytes(random()?).into_uuid();
            if !self.uuids.contains_key(&uuid) {
                return Ok(uuid);
            }
        }
        bail!("no UUID is free")
    }

    /// An address that nobody has, the guest itself included.
    pub(super) fn free_mac(&self, guest: &Definition) -> anyhow::Result<MacAddr> {
        let [x, y, z] = VENDOR;
        for _ in 0..TRIES {
            let [a, b, c] = random()?;
            let mac = MacAddr::new([x, y, z, a, b, c]);
            if !self.macs.contains_key(&mac) && !guest.macs().any(|own| own == mac) {
                return Ok(mac);
            }
        }
        bail!("no MAC address is free")
    }
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    // So few bytes come in one piece, and wait only while the host starts.
    let length = getrandom(&mut bytes, GetRandomFlags::empty()).context("no random bytes")?;
    match length == N {
        true => Ok(bytes),
        false => bail!("no random bytes"),
    }
}
