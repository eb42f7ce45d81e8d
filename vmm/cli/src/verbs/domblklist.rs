//! `bulkhead domblklist`: lists the disks of a guest.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::domain::DomainArg;
use crate::guest::Definition;
use crate::output::{Output, Table};

/// A guest whose disks are listed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// List the disks of the definition in its file, not of the one that it runs with
    #[arg(long)]
    inactive: bool,
    /// Add columns for the type of the source and of the device
    #[arg(long)]
    details: bool,
}

/// A disk, as the list shows it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    #[serde(rename = "type")]
    kind: &'static str,
    device: &'static str,
    /// `None`: the disk of another program, which has no name here.
    target: Option<String>,
    source: String,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    let rows = rows(domain.definition_that_is(args.inactive));
    output.show_table(&rows, |rows| table(rows, args.details))?;
    Ok(ExitCode::SUCCESS)
}

fn rows(guest: &Definition) -> Vec<Row> {
    let images = guest.named_disks().into_iter().map(|(target, disk)| Row {
        kind: kind(&disk.path),
        device: "disk",
        target: Some(target),
        source: disk.path.display().to_string(),
    });
    let others = guest
        .vhost_user
        .iter()
        .filter(|device| device.device_type.is_block());
    let others = others.map(|device| Row {
        kind: "vhostuser",
        device: "disk",
        target: None,
        source: device.socket.display().to_string(),
    });
    images.chain(others).collect()
}

/// What an image is, in libvirt's words. One that is missing is a file that may come.
fn kind(path: &Path) -> &'static str {
    let is_device = std::fs::metadata(path).is_ok_and(|it| it.file_type().is_block_device());
    if is_device { "block" } else { "file" }
}

fn table(rows: &[Row], details: bool) -> Table {
    let mut table = match details {
        true => Table::new(["Type", "Device", "Target", "Source"]),
        false => Table::new(["Target", "Source"]),
    };
    for row in rows {
        let target = row.target.clone().unwrap_or_else(|| "-".to_owned());
        let mut cells = vec![target, row.source.clone()];
        if details {
            cells.splice(0..0, [row.kind.to_owned(), row.device.to_owned()]);
        }
        table.row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_virshs() {
        // As virsh 9.0 prints the disk of its test guest.
        let row = Row {
            kind: "file",
            device: "disk",
            target: Some("vda".to_owned()),
            source: "/guest/diskimage1".to_owned(),
        };
        let rows = [row];
        assert_eq!(
            table(&rows, false).render(true),
            " Target   Source\n-----------------------------\n vda      /guest/diskimage1\n"
        );
        assert_eq!(
            table(&rows, true).render(true),
            " Type   Device   Target   Source\n---------------------------------------------\n \
             file   disk     vda      /guest/diskimage1\n"
        );
    }

    #[test]
    fn disks_of_images_come_before_those_of_other_programs() {
        let mut guest = Definition::new("g".into(), "/k".into());
        let disk = serde_json::json!({ "path": "/b.raw", "format": "raw" });
        guest.disks = vec![serde_json::from_value(disk).unwrap()];
        let other = serde_json::json!({ "type": "blk", "socket": "/s.sock" });
        guest.vhost_user = vec![serde_json::from_value(other).unwrap()];
        let shown: Vec<_> = rows(&guest)
            .into_iter()
            .map(|row| (row.kind, row.target, row.source))
            .collect();
        assert_eq!(
            shown,
            [
                ("file", Some("vda".to_owned()), "/b.raw".to_owned()),
                ("vhostuser", None, "/s.sock".to_owned())
            ]
        );
    }
}
