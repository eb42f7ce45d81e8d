//! `bulkhead undefine`: removes the definition of a guest, and its images if that is wanted.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use bulkhead_process::usage;

use crate::domain::DomainArg;
use crate::guest::Definition;
use crate::output::Output;
use crate::store::Store;

/// A guest that is no longer defined.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// Remove these disks' images, too: names of disks or paths of images, with commas between
    #[arg(
        long,
        value_name = "DISK,…",
        value_delimiter = ',',
        conflicts_with = "remove_all_storage"
    )]
    storage: Vec<String>,
    /// Remove the images of all disks, too
    #[arg(long)]
    remove_all_storage: bool,
    /// For virsh's sake: a guest has no such state
    #[arg(long, hide = true)]
    managed_save: bool,
    /// For virsh's sake: a guest has no such state
    #[arg(long, hide = true)]
    snapshots_metadata: bool,
    /// For virsh's sake: a guest has no such state
    #[arg(long, hide = true)]
    checkpoints_metadata: bool,
    /// For virsh's sake: a guest has no such state
    #[arg(long, hide = true, conflicts_with = "keep_nvram")]
    nvram: bool,
    /// For virsh's sake: a guest has no such state
    #[arg(long, hide = true)]
    keep_nvram: bool,
    /// For virsh's sake: a guest has no such state
    #[arg(long, hide = true, conflicts_with = "keep_tpm")]
    tpm: bool,
    /// For virsh's sake: a guest has no such state
    #[arg(long, hide = true)]
    keep_tpm: bool,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let store = Store::open()?;
    let wants_volumes = args.remove_all_storage || !args.storage.is_empty();
    let (name, volumes) = match args.domain.find() {
        Ok(domain) => {
            if wants_volumes && domain.running.is_some() {
                bail!("Storage volume deletion is supported only on stopped domains");
            }
            (
                domain.name().to_owned(),
                volumes(args, domain.definition())?,
            )
        }
        // A damaged definition can be removed, too.
        Err(error) => match store.bytes(args.domain.words()) {
            Ok(Some(_)) if !wants_volumes => (args.domain.words().to_owned(), Vec::new()),
            _ => return Err(error),
        },
    };
    let name = name.as_str();
    store
        .change()
        .and_then(|changes| changes.remove(name))
        .with_context(|| format!("Failed to undefine domain '{name}'"))?;
    output.success(&format!("Domain '{name}' has been undefined"))?;
    remove(&volumes, output)?;
    Ok(ExitCode::SUCCESS)
}

/// The disks whose images are to be removed: their names and paths.
fn volumes(args: &Args, guest: &Definition) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut disks: Vec<_> = guest
        .named_disks()
        .into_iter()
        .map(|(name, disk)| (name, disk.path.clone()))
        .collect();
    if args.remove_all_storage {
        return Ok(disks);
    }
    for wanted in &args.storage {
        let is_it =
            |(name, path): &(String, PathBuf)| name == wanted || path.as_os_str() == &**wanted;
        if !disks.iter().any(is_it) {
            return Err(usage(format!(
                "Volume '{wanted}' was not found in domain's definition."
            )));
        }
    }
    disks.retain(|(name, path)| {
        let mut wanted = args.storage.iter();
        wanted.any(|wanted| wanted == name || path.as_os_str() == &**wanted)
    });
    Ok(disks)
}

/// Removes images. One that cannot be removed keeps none of the others.
fn remove(volumes: &[(String, PathBuf)], output: Output) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    for (name, path) in volumes {
        let shown = path.display();
        match std::fs::remove_file(path) {
            Ok(()) => output.success(&format!("Volume '{name}'({shown}) removed."))?,
            Err(error) => failed.push(format!("'{name}'({shown}): {error}")),
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("Failed to remove storage volume {}", failed.join("; "))
}
