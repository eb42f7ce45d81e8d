//! A network as the command line describes it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tap::InterfaceName;

use crate::mode::Mode;
use crate::subnet::Ipv4Subnet;

/// The bridge and the subnet of a network whose options do not name others.
const DEFAULT_BRIDGE: &str = "bulkhead0";
const DEFAULT_SUBNET: Ipv4Subnet = Ipv4Subnet::from_parts([192, 168, 124, 0], 24);

/// The host's and the guests' addresses on a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addressing {
    /// The subnet. Its first address is the host's.
    pub(crate) subnet: Ipv4Subnet,
    /// Whether dnsmasq serves the guests DHCP and DNS.
    pub(crate) dhcp: bool,
}

/// One network. The state folder contains it in the command line's syntax.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Network {
    /// The name that clients request it by.
    pub(crate) name: String,
    /// The bridge whose ports its TAP devices are.
    pub(crate) bridge: InterfaceName,
    /// How its guests reach other networks.
    pub(crate) mode: Mode,
    /// The host's and the guests' addresses; `None` on a bridge that is somebody else's.
    pub(crate) addressing: Option<Addressing>,
}

impl Network {
    /// The network called `default`.
    pub(crate) fn default_network() -> Result<Self, String> {
        "default".parse()
    }

    /// Whether this program creates the bridge and removes it.
    pub(crate) fn owns_bridge(&self) -> bool {
        self.mode.owns_bridge()
    }

    /// Whether guests of the other network can stay on this one: it has the same bridge and the same subnet.
    pub(crate) fn takes_over(&self, other: &Network) -> bool {
        let subnet = |network: &Network| network.addressing.map(|a| a.subnet);
        self.bridge == other.bridge && subnet(self) == subnet(other)
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The network in the command line's syntax, with all options.
impl From<Network> for String {
    fn from(network: Network) -> Self {
        let Network {
            name,
            bridge,
            mode,
            addressing,
        } = network;
        let addressing = addressing.map_or(String::new(), |Addressing { subnet, dhcp }| {
            format!(",subnet={subnet},dhcp={}", if dhcp { "on" } else { "off" })
        });
        format!("name={name},bridge={bridge},mode={mode}{addressing}")
    }
}

/// `default`, or `name=NAME,subnet=…,bridge=…,mode=…,dhcp=on|off`, in any order, each option at most once.
impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let given = Options::parse(text)?;
        let name = valid_name(given.name.unwrap_or("default"))?;
        let mode = given.mode.map_or(Ok(Mode::default()), str::parse)?;
        let bridge = given
            .bridge
            .unwrap_or(DEFAULT_BRIDGE)
            .parse()
            .map_err(|e: tap::Error| e.to_string())?;
        let addressing = if mode.owns_bridge() {
            Some(Addressing {
                subnet: given.subnet.map_or(Ok(DEFAULT_SUBNET), str::parse)?,
                dhcp: given.dhcp.map_or(Ok(true), on_or_off)?,
            })
        } else if given.bridge.is_none() {
            return Err(format!(
                "mode={mode} needs bridge=NAME, a bridge that exists"
            ));
        } else if given.subnet.is_some() || given.dhcp.is_some() {
            return Err(format!(
                "mode={mode} takes no subnet and no dhcp: the bridge is somebody else's"
            ));
        } else {
            None
        };
        Ok(Network {
            name,
            bridge,
            mode,
            addressing,
        })
    }
}

/// The values that the options have on the command line.
#[derive(Default)]
struct Options<'a> {
    name: Option<&'a str>,
    subnet: Option<&'a str>,
    bridge: Option<&'a str>,
    mode: Option<&'a str>,
    dhcp: Option<&'a str>,
}

impl<'a> Options<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let mut given = Options::default();
        for part in text.split(',') {
            // A word without a key is the name.
            let (key, value) = part.split_once('=').unwrap_or(("name", part));
            let option = match key {
                "name" => &mut given.name,
                "subnet" => &mut given.subnet,
                "bridge" => &mut given.bridge,
                "mode" => &mut given.mode,
                "dhcp" => &mut given.dhcp,
                _ => {
                    return Err(format!(
                        "{key:?} is not one of name, subnet, bridge, mode, dhcp"
                    ));
                }
            };
            if option.replace(value).is_some() {
                return Err(format!("{key} is given twice"));
            }
        }
        Ok(given)
    }
}

/// Checks a name, which becomes part of file names.
fn valid_name(name: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=32).contains(&name.len()) && name.chars().all(allowed) && !name.starts_with('.') {
        return Ok(name.to_owned());
    }
    Err(format!(
        "network name {name:?} is not 1 to 32 letters, digits, '-', '_' or '.'"
    ))
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("dhcp={text} is neither on nor off")),
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "network {}", self.name)
    }
}

/// Refuses networks with the same name or the same bridge, or with overlapping subnets.
pub(crate) fn check_together(networks: &[Network]) -> Result<(), String> {
    for (n, one) in networks.iter().enumerate() {
        for other in networks.iter().take(n) {
            if one.name == other.name {
                return Err(format!("{one} is given twice"));
            }
            if one.bridge == other.bridge && (one.owns_bridge() || other.owns_bridge()) {
                return Err(format!(
                    "{other} and {one} have the same bridge {}",
                    one.bridge
                ));
            }
            if let (Some(a), Some(b)) = (one.addressing, other.addressing)
                && a.subnet.overlaps(b.subnet)
            {
                return Err(format!(
                    "{other} ({}) and {one} ({}) overlap",
                    b.subnet, a.subnet
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_not_given_is_the_default_networks() {
        let full =
            network("name=default,subnet=192.168.124.0/24,bridge=bulkhead0,mode=nat,dhcp=on");
        assert_eq!(network("default"), full);
        assert_eq!(Network::default_network().unwrap(), full);
        let other = network("name=lab,bridge=lab0,subnet=10.9.0.0/16,mode=isolated,dhcp=off");
        assert_eq!(other.mode.name(), "isolated");
        assert!(!other.addressing.unwrap().dhcp);
    }

    #[test]
    fn what_is_written_down_is_read_as_it_was() {
        for text in [
            "default",
            "name=lab,bridge=lab0,subnet=10.9.0.0/16,mode=isolated,dhcp=off",
            "name=out,bridge=out0,subnet=10.8.0.0/16,mode=routed",
            "name=lan,mode=bridge,bridge=br0",
        ] {
            let network = network(text);
            let written = String::from(network.clone());
            assert_eq!(Network::try_from(written).unwrap(), network);
        }
    }

    #[test]
    fn a_network_takes_guests_over_that_find_their_addresses_there() {
        let old = network("name=a,mode=isolated");
        assert!(network("name=b,mode=nat,dhcp=off").takes_over(&old));
        assert!(!network("name=a,mode=isolated,bridge=a0").takes_over(&old));
        assert!(!network("name=a,mode=isolated,subnet=10.0.0.0/24").takes_over(&old));
        assert!(!network("name=a,mode=bridge,bridge=bulkhead0").takes_over(&old));
    }

    #[test]
    fn an_existing_bridge_has_no_addresses_of_ours() {
        let lan = network("name=lan,mode=bridge,bridge=br0");
        assert_eq!((lan.addressing, lan.owns_bridge()), (None, false));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, why) in [
            ("", "network name \"\""),
            ("name=../x", "network name"),
            ("speed=10", "\"speed\" is not one of"),
            ("name=a,name=b", "name is given twice"),
            ("a,b", "name is given twice"),
            ("mode=magic", "mode=magic is not one of"),
            ("dhcp=yes", "dhcp=yes is neither"),
            ("bridge=abcdefghijklmnop", "longer than 15 bytes"),
            ("mode=bridge", "needs bridge=NAME"),
            (
                "mode=bridge,bridge=br0,dhcp=on",
                "takes no subnet and no dhcp",
            ),
            ("subnet=192.168.124.0", "192.168.124.0"),
        ] {
            let error = text.parse::<Network>().unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn networks_in_each_others_way_are_refused() {
        for (a, b, why) in [
            ("a", "a", "given twice"),
            ("a", "name=b,subnet=10.0.0.0/24", "same bridge"),
            ("a", "name=b,bridge=b0,subnet=192.168.0.0/16", "overlap"),
        ] {
            let error = check_together(&[network(a), network(b)]).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        check_together(&[network("a"), network("name=b,bridge=b0,subnet=10.0.0.0/24")]).unwrap();
    }
}
