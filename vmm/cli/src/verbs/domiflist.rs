//! `bulkhead domiflist`: lists the network cards of a guest.

use std::process::ExitCode;

use serde::Serialize;

use crate::domain::{Domain, DomainArg};
use crate::output::{Output, Table};
use crate::stats::interface::tap_of;

/// A guest whose network cards are listed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// List the cards of the definition in its file, not of the one that it runs with
    #[arg(long)]
    inactive: bool,
}

/// A network card, as the list shows it.
#[derive(Debug, Serialize)]
struct Row {
    /// The TAP device on the host, while the guest runs.
    interface: Option<String>,
    #[serde(rename = "type")]
    kind: &'static str,
    source: String,
    model: &'static str,
    /// `None`: the card of another program, which alone knows it.
    mac: Option<String>,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    let rows = rows(&domain, args.inactive);
    output.show_table(&rows, |rows| table(rows))?;
    Ok(ExitCode::SUCCESS)
}

fn rows(domain: &Domain, inactive: bool) -> Vec<Row> {
    let guest = domain.definition_that_is(inactive);
    let runs = domain.running.is_some() && !inactive;
    let own = guest.nets.iter().enumerate().map(|(index, net)| {
        let mac = guest.mac(net, index);
        Row {
            interface: if runs { tap_of(mac) } else { None },
            kind: "network",
            source: net.network.clone(),
            model: "virtio",
            mac: Some(mac.to_string()),
        }
    });
    let others = guest
        .vhost_user
        .iter()
        .filter(|device| device.device_type.is_net());
    let others = others.map(|device| Row {
        interface: None,
        kind: "vhostuser",
        source: device.socket.display().to_string(),
        model: "virtio",
        mac: None,
    });
    own.chain(others).collect()
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(["Interface", "Type", "Source", "Model", "MAC"]);
    let or_none = |cell: &Option<String>| cell.clone().unwrap_or_else(|| "-".to_owned());
    for row in rows {
        table.row(vec![
            or_none(&row.interface),
            row.kind.to_owned(),
            row.source.clone(),
            row.model.to_owned(),
            or_none(&row.mac),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_virshs() {
        // As virsh 9.0 prints the card of its test guest.
        let row = Row {
            interface: Some("testnet0".to_owned()),
            kind: "network",
            source: "default".to_owned(),
            model: "-",
            mac: Some("aa:bb:cc:dd:ee:ff".to_owned()),
        };
        assert_eq!(
            table(&[row]).render(true),
            " Interface   Type      Source    Model   MAC\n\
             ------------------------------------------------------------\n \
             testnet0    network   default   -       aa:bb:cc:dd:ee:ff\n"
        );
    }
}
