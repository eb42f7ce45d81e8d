//! What is said.

use std::net::Ipv4Addr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use bulkhead_mac::MacAddr;

use crate::{Error, MAX_MESSAGE, VERSION};

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Request {
    /// A TAP device, for as long as the connection lasts. One per connection.
    Tap(TapRequest),
    /// A hold: as long as this connection lasts, the helper is not idle. One per connection, and nothing else on it but
    /// [`Request::Release`].
    Hold,
    /// The end of the hold, on its connection.
    Release,
}

/// The TAP device that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapRequest {
    /// The network it is to be on.
    pub network: String,
    /// The guest's hardware address; the helper makes one up if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// How many queues, from 1 to [`crate::MAX_QUEUES`].
    #[serde(default = "one")]
    pub queues: u16,
    /// The MTU; the network's if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

fn one() -> u16 {
    1
}

impl TapRequest {
    /// One queue on a network; the rest as the helper sees fit.
    pub fn on(network: impl Into<String>) -> Self {
        TapRequest {
            network: network.into(),
            mac: None,
            queues: 1,
            mtu: None,
        }
    }
}

/// What the helper answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Reply {
    /// The TAP device; its files come with this message, one per queue.
    Tap(TapInfo),
    /// The connection is a hold from now on.
    Held,
    /// The hold has ended.
    Released {
        /// Whether the helper ends now, because it is to end when idle and nobody else holds it or has a lease. The
        /// connection closes when it has undone everything.
        ends: bool,
    },
    /// Nothing was done.
    Refused(Refusal),
}

/// The TAP device that was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapInfo {
    /// The interface's name on the host.
    pub interface: String,
    /// The guest's hardware address.
    pub mac: MacAddr,
    /// The MTU.
    pub mtu: u16,
    /// The bridge it is a port of.
    pub bridge: String,
    /// The network's addresses, where the helper is the one who assigns them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Subnet>,
}

/// An IPv4 network and the host's own address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// The network's address.
    pub network: Ipv4Addr,
    /// Length of the network's prefix, in bits.
    pub prefix: u8,
    /// The host's address on the bridge, which is the guests' gateway.
    pub gateway: Ipv4Addr,
}

/// Why nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// What kind of thing was wrong.
    pub kind: RefusalKind,
    /// The same in words.
    pub message: String,
}

/// What kind of thing was wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RefusalKind {
    /// There is no network of that name.
    UnknownNetwork,
    /// The message or a value in it makes no sense.
    Invalid,
    /// The caller is not allowed to ask.
    Permission,
    /// The caller, or all callers together, have as much as they may.
    Limit,
    /// The system could not do it.
    System,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<T> {
    version: u32,
    body: T,
}

/// Only the version, so that a message of another one is refused for that and not for what it says.
#[derive(Deserialize)]
struct AnyVersion {
    version: u32,
}

/// A message as bytes.
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

/// Bytes as a message.
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
