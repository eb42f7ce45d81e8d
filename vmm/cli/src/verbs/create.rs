//! `bulkhead create`: starts a guest from a TOML file, without defining it.

use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};

use super::define::FileArg;
use super::start;
use crate::guest::Definition;
use crate::guest::definition::Text;
use crate::output::Output;
use crate::store::Store;
use crate::{live, runtime};

/// A guest to be started from a file.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    file: FileArg,
    #[command(flatten)]
    how: start::How,
    /// For virsh's sake: a definition is always validated
    #[arg(long)]
    validate: bool,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let shown = args.file.path().display();
    let failed = || format!("Failed to create domain from {shown}");
    let bytes = args.file.read()?;
    let (_, definition) = Text::parse(&bytes)
        .map_err(|wrong| anyhow!("{wrong}"))
        .with_context(failed)?;
    let (definition, is_persistent) = settle(definition).with_context(failed)?;
    let name = definition.name.clone();
    args.how
        .start(definition, is_persistent)
        .with_context(failed)?;
    output.success(&format!("Domain '{name}' created from {shown}"))?;
    args.how.attach(&name, output)
}

/// Settles which guest it is: one that is defined, too, keeps its UUID. Returns whether it is defined.
fn settle(mut guest: Definition) -> anyhow::Result<(Definition, bool)> {
    let name = guest.name.clone();
    if live::get(&runtime::known_base(), &name).is_some() {
        bail!("domain '{name}' is already active: 'bulkhead domstate {name}' shows its state");
    }
    let defined = Store::open()?.load(&name)?;
    if let Some(defined) = &defined {
        match guest.uuid {
            None => guest.uuid = Some(defined.uuid()),
            Some(uuid) if uuid == defined.uuid() => {}
            Some(_) => bail!(
                "domain '{name}' already exists with uuid {}",
                defined.uuid()
            ),
        }
    }
    Ok((guest, defined.is_some()))
}
