//! `bulkhead domifaddr`: prints the addresses that a guest has by DHCP.

use std::process::ExitCode;

use anyhow::{Context, bail};
use serde::Serialize;

use crate::domain::{Domain, DomainArg};
use crate::output::Output;
use crate::stats::{address, interface};

/// A guest whose addresses are printed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// Print only those of this card: its interface as 'domiflist' shows it, its MAC address, or net0, net1, and so on
    #[arg(long, value_name = "INTERFACE")]
    interface: Option<String>,
    /// Print the name and the MAC address of a card before each of its addresses
    #[arg(long)]
    full: bool,
    /// Where the addresses are from: lease is what DHCP has given
    #[arg(long, value_name = "SOURCE", default_value = "lease", value_parser = ["lease", "agent", "arp"])]
    source: String,
}

/// A network card and its addresses.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    mac: String,
    addresses: Vec<Shown>,
}

#[derive(Debug, Serialize)]
struct Shown {
    protocol: &'static str,
    address: String,
    prefix: u8,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    domain.must_run()?;
    if args.source != "lease" {
        bail!(
            "Failed to query for interfaces addresses: source '{}' is not supported: use --source lease",
            args.source
        );
    }
    let rows = rows(&domain, args.interface.as_deref())
        .context("Failed to query for interfaces addresses")?;
    output.show(&rows, |rows| text(rows, args.full))?;
    Ok(ExitCode::SUCCESS)
}

fn rows(domain: &Domain, wanted: Option<&str>) -> anyhow::Result<Vec<Row>> {
    let mut cards = interface::of(domain);
    if let Some(wanted) = wanted {
        cards.retain(|card| card.is_called(wanted));
        if cards.is_empty() {
            bail!(
                "'{wanted}' is not a known interface: 'bulkhead domiflist {}' lists them",
                domain.name()
            );
        }
    }
    let mut rows = Vec::new();
    for card in cards {
        let addresses = address::of(domain, &card)?.into_iter();
        let addresses = addresses.map(|found| Shown {
            protocol: "ipv4",
            address: found.address.to_string(),
            prefix: found.prefix,
        });
        rows.push(Row {
            name: card.tap.unwrap_or(card.process),
            mac: card.mac.to_string(),
            addresses: addresses.collect(),
        });
    }
    // As libvirt, which lists no card that has none.
    rows.retain(|row| !row.addresses.is_empty());
    Ok(rows)
}

/// The lines have the widths of virsh's, which are not those of its tables.
fn text(rows: &[Row], full: bool) -> String {
    let mut text = format!(
        " {:<10} {:<20} {:<8}     {}\n{}\n",
        "Name",
        "MAC address",
        "Protocol",
        "Address",
        "-".repeat(79)
    );
    for row in rows {
        for (index, shown) in row.addresses.iter().enumerate() {
            let (name, mac) = match index > 0 && !full {
                true => ("-", "-"),
                false => (row.name.as_str(), row.mac.as_str()),
            };
            let address = format!("{}/{}", shown.address, shown.prefix);
            let line = format!(
                " {name:<10} {mac:<17}    {:<12} {address}\n",
                shown.protocol
            );
            text.push_str(&line);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_virshs() {
        let shown = |address: &str| Shown {
            protocol: "ipv4",
            address: address.to_owned(),
            prefix: 24,
        };
        let mut rows = [Row {
            name: "testnet0".to_owned(),
            mac: "aa:bb:cc:dd:ee:ff".to_owned(),
            addresses: vec![shown("192.168.122.3")],
        }];
        // As virsh 9.0 prints it of its test guest.
        let first = " Name       MAC address          Protocol     Address\n\
            -------------------------------------------------------------------------------\n \
            testnet0   aa:bb:cc:dd:ee:ff    ipv4         192.168.122.3/24\n";
        assert_eq!(text(&rows, false), first);
        rows[0].addresses.push(shown("192.168.122.4"));
        let more = " -          -                    ipv4         192.168.122.4/24\n";
        assert_eq!(text(&rows, false), format!("{first}{more}"));
        let full = " testnet0   aa:bb:cc:dd:ee:ff    ipv4         192.168.122.4/24\n";
        assert_eq!(text(&rows, true), format!("{first}{full}"));
    }
}
