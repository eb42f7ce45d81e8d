//! The TAP devices of guests, and what went through them.

use std::path::{Path, PathBuf};

use bulkhead_mac::MacAddr;
use bulkhead_net_protocol::tap_mac;
use serde::Serialize;

use crate::domain::Domain;
use crate::host;

/// The host's network interfaces.
const INTERFACES: &str = "/sys/class/net";

/// What went through a network card, as the guest sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counters {
    pub(crate) rx_bytes: u64,
    pub(crate) rx_packets: u64,
    pub(crate) rx_errs: u64,
    pub(crate) rx_drop: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) tx_packets: u64,
    pub(crate) tx_errs: u64,
    pub(crate) tx_drop: u64,
}

/// A network card of a guest that runs.
#[derive(Clone, Debug)]
pub(crate) struct Card {
    /// The name of the process that serves it.
    pub(crate) process: String,
    pub(crate) network: String,
    pub(crate) mac: MacAddr,
    /// `None` while it has none, as when its process is being started again.
    pub(crate) tap: Option<String>,
}

/// The network cards of a guest that runs; none where it does not.
pub(crate) fn of(domain: &Domain) -> Vec<Card> {
    let Some(state) = &domain.running else {
        return Vec::new();
    };
    let guest = &state.definition;
    let cards = guest.nets.iter().enumerate().map(|(index, net)| {
        let mac = guest.mac(net, index);
        Card {
            process: format!("net{index}"),
            network: net.network.clone(),
            mac,
            tap: tap_of(mac),
        }
    });
    cards.collect()
}

impl Card {
    /// Whether a user means it by these words: its TAP device's name, its address, or its process's name.
    pub(crate) fn is_called(&self, words: &str) -> bool {
        self.tap.as_deref() == Some(words) || words.parse() == Ok(self.mac) || self.process == words
    }
}

/// The name of the TAP device of the card with this address.
pub(crate) fn tap_of(guest: MacAddr) -> Option<String> {
    let wanted = tap_mac(guest).to_string();
    let interfaces = std::fs::read_dir(INTERFACES).ok()?.flatten();
    let is_wanted = |path: &Path| {
        // Only TUN and TAP devices have these flags.
        path.join("tun_flags").exists()
            && host::read(path.join("address")).is_ok_and(|mac| mac == wanted)
    };
    let mut found = interfaces.filter(|interface| is_wanted(&interface.path()));
    found.next()?.file_name().into_string().ok()
}

/// The counters of a TAP device. What the host sends, the guest receives.
pub(crate) fn counters(tap: &str) -> Option<Counters> {
    let folder: PathBuf = [INTERFACES, tap, "statistics"].iter().collect();
    let number = |name: &str| host::number(folder.join(name));
    Some(Counters {
        rx_bytes: number("tx_bytes")?,
        rx_packets: number("tx_packets")?,
        rx_errs: number("tx_errors")?,
        rx_drop: number("tx_dropped")?,
        tx_bytes: number("rx_bytes")?,
        tx_packets: number("rx_packets")?,
        tx_errs: number("rx_errors")?,
        tx_drop: number("rx_dropped")?,
    })
}

impl Counters {
    /// The counters by the names that virsh prints, in its order.
    pub(crate) fn named(&self) -> [(&'static str, u64); 8] {
        [
            ("rx_bytes", self.rx_bytes),
            ("rx_packets", self.rx_packets),
            ("rx_errs", self.rx_errs),
            ("rx_drop", self.rx_drop),
            ("tx_bytes", self.tx_bytes),
            ("tx_packets", self.tx_packets),
            ("tx_errs", self.tx_errs),
            ("tx_drop", self.tx_drop),
        ]
    }
}
