//! The addresses that guests have by DHCP, which the network helper knows.

use std::net::Ipv4Addr;

use anyhow::Context;
use bulkhead_net_protocol::{AddressRequest, Client};

use super::interface::Card;
use crate::domain::Domain;

/// An address and the length of its prefix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
}

/// The addresses of a card of a guest that runs.
///
/// # Errors
/// When no helper runs, or it does not answer.
pub(crate) fn of(domain: &Domain, card: &Card) -> anyhow::Result<Vec<Address>> {
    let state = domain.must_run()?;
    let own = domain.base().join("net-helper.sock");
    let socket = state.helper_socket.as_deref().unwrap_or(&own);
    let request = AddressRequest {
        network: card.network.clone(),
        mac: card.mac,
    };
    let found = Client::connect(socket)
        .and_then(|client| client.request_addresses(&request))
        .context("net-helper")?;
    let prefix = found.prefix;
    let addresses = found.addresses.into_iter();
    Ok(addresses
        .map(|address| Address { address, prefix })
        .collect())
}
