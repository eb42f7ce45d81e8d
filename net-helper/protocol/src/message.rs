//! The messages.

use std::net::Ipv4Addr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use bulkhead_mac::MacAddr;

use crate::{Error, MAX_MESSAGE, VERSION};

/// A client's request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Request {
    /// A TAP device, for as long as the connection lasts. A connection can have one.
    Tap(TapRequest),
    /// A hold: as long as this connection lasts, the helper is not idle. After it, [`Request::Release`] is the only
    /// request on this connection.
    Hold,
    /// Ends the hold of this connection.
    Release,
    /// The addresses that a guest has by DHCP. The connection can have further requests.
    Addresses(AddressRequest),
}

/// The guest whose addresses a client requests: it must know both the network and the guest's MAC address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressRequest {
    /// The network that the guest is on.
    pub network: String,
    /// The guest's MAC address.
    pub mac: MacAddr,
}

/// The TAP device that a client requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapRequest {
    /// The network that the device is attached to.
    pub network: String,
    /// The guest's MAC address; a random one if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// The number of queues, from 1 to [`crate::MAX_QUEUES`].
    #[serde(default = "one")]
    pub queues: u16,
    /// The MTU; that of the network's bridge if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

fn one() -> u16 {
    1
}

impl TapRequest {
    /// A device with one queue on a network; the helper chooses the rest.
    pub fn on(network: impl Into<String>) -> Self {
        TapRequest {
            network: network.into(),
            mac: None,
            queues: 1,
            mtu: None,
        }
    }
}

/// The helper's reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Reply {
    /// The TAP device. This message has its files, one for each queue.
    Tap(TapInfo),
    /// The connection is a hold from now on.
    Held,
    /// The hold has ended.
    Released {
        /// Whether the helper ends now: it has --exit-idle, and this was the last hold and there is no lease. The
        /// connection closes when the helper has removed everything.
        ends: bool,
    },
    /// The addresses of a guest.
    Addresses(Addresses),
    /// The request was refused and has had no effect.
    Refused(Refusal),
}

/// The TAP device of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapInfo {
    /// The interface's name on the host.
    pub interface: String,
    /// The guest's MAC address.
    pub mac: MacAddr,
    /// The MTU.
    pub mtu: u16,
    /// The bridge that it is a port of.
    pub bridge: String,
    /// The network's addresses; `None` if the bridge is not the helper's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Subnet>,
}

/// An IPv4 subnet and the host's address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// The subnet's address.
    pub network: Ipv4Addr,
    /// The prefix length, in bits.
    pub prefix: u8,
    /// The host's address on the bridge, which is the guests' gateway.
    pub gateway: Ipv4Addr,
}

/// The addresses that a guest has by DHCP, at most [`crate::MAX_ADDRESSES`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addresses {
    /// The addresses; none if the guest has not asked for one, or the network has no DHCP.
    pub addresses: Vec<Ipv4Addr>,
    /// The length of the network's prefix, in bits.
    pub prefix: u8,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// What was wrong with the request.
    pub kind: RefusalKind,
    /// The reason, for people.
    pub message: String,
}

/// What was wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RefusalKind {
    /// There is no network of that name.
    UnknownNetwork,
    /// The message, or a value in it, is invalid.
    Invalid,
    /// The client may not make this request.
    Permission,
    /// The client's user, or all clients together, have as many connections as they may.
    Limit,
    /// A system call failed.
    System,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<T> {
    version: u32,
    body: T,
}

/// Only the version, so that a message of another version is refused for its version and not for its contents.
#[derive(Deserialize)]
struct AnyVersion {
    version: u32,
}

/// Encodes a message.
pub fn encode<T: Serialize>(body: &T) -> Result<Vec<u8>, Error> {
    let bytes = serde_json::to_vec(&Envelope {
        version: VERSION,
        body,
    })
    .map_err(|e| Error::protocol(e.to_string()))?;
    match bytes.len() {
        0..=MAX_MESSAGE => Ok(bytes),
        n => Err(Error::protocol(format!(
            "a message of {n} bytes is longer than {MAX_MESSAGE}"
        ))),
    }
}

/// Decodes a message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let any: AnyVersion = serde_json::from_slice(bytes)
        .map_err(|e| Error::protocol(format!("not a message: {e}")))?;
    if any.version != VERSION {
        let what = format!(
            "the peer speaks version {} of the protocol, this program version {VERSION}",
            any.version
        );
        return Err(Error::protocol(what));
    }
    let envelope: Envelope<T> = serde_json::from_slice(bytes)
        .map_err(|e| Error::protocol(format!("not a message: {e}")))?;
    Ok(envelope.body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_written_as_documented_and_round_trips() {
        let request = Request::Tap(TapRequest {
            network: "default".into(),
            mac: Some("52:54:00:00:00:01".parse().unwrap()),
            queues: 2,
            mtu: Some(1500),
        });
        let bytes = encode(&request).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&bytes),
            r#"{"version":1,"body":{"tap":{"network":"default","mac":"52:54:00:00:00:01","queues":2,"mtu":1500}}}"#
        );
        assert_eq!(decode::<Request>(&bytes).unwrap(), request);
    }

    #[test]
    fn holds_are_written_as_documented() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert_eq!(
            text(encode(&Request::Hold).unwrap()),
            r#"{"version":1,"body":"hold"}"#
        );
        assert_eq!(
            text(encode(&Reply::Released { ends: true }).unwrap()),
            r#"{"version":1,"body":{"released":{"ends":true}}}"#
        );
    }

    #[test]
    fn addresses_are_written_as_documented() {
        let request = Request::Addresses(AddressRequest {
            network: "default".into(),
            mac: "52:54:00:00:00:01".parse().unwrap(),
        });
        let reply = Reply::Addresses(Addresses {
            addresses: vec![[192, 168, 124, 7].into()],
            prefix: 24,
        });
        assert_eq!(
            String::from_utf8(encode(&request).unwrap()).unwrap(),
            r#"{"version":1,"body":{"addresses":{"network":"default","mac":"52:54:00:00:00:01"}}}"#
        );
        assert_eq!(
            String::from_utf8(encode(&reply).unwrap()).unwrap(),
            r#"{"version":1,"body":{"addresses":{"addresses":["192.168.124.7"],"prefix":24}}}"#
        );
    }

    #[test]
    fn only_the_network_must_be_given() {
        let request =
            decode::<Request>(br#"{"version":1,"body":{"tap":{"network":"default"}}}"#).unwrap();
        assert_eq!(request, Request::Tap(TapRequest::on("default")));
    }

    #[test]
    fn what_is_unknown_is_refused() {
        for bytes in [
            &br#"{"version":1,"body":{"tap":{"network":"a","speed":10}}}"#[..],
            br#"{"version":1,"body":{"tap":{"network":"a"}},"more":1}"#,
            br#"{"version":1,"body":{"route":{}}}"#,
            br#"{"version":1,"body":{"tap":{"network":"a","queues":65536}}}"#,
            br#"{"version":1,"body":{"tap":{"network":"a","mac":"ff:ff:ff:ff:ff:ff"}}}"#,
            br#"{"body":{"tap":{"network":"a"}}}"#,
            b"",
            b"\xff\xfe",
            b"[[[[[[[[",
        ] {
            assert!(
                decode::<Request>(bytes).is_err(),
                "{}",
                String::from_utf8_lossy(bytes)
            );
        }
    }

    #[test]
    fn another_version_is_refused_for_its_version_whatever_it_says() {
        let error = decode::<Request>(br#"{"version":7,"body":{"teleport":{}}}"#).unwrap_err();
        assert!(error.to_string().contains("version 7"), "{error}");
    }

    #[test]
    fn a_message_that_is_too_long_is_not_sent() {
        assert!(encode(&Request::Tap(TapRequest::on("x".repeat(MAX_MESSAGE)))).is_err());
    }
}
