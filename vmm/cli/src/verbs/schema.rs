//! `bulkhead schema`: prints the JSON Schema of a definition, for editors.

use std::process::ExitCode;

use crate::guest::Definition;
use crate::output::Output;

/// There is nothing to choose.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let schema = schemars::schema_for!(Definition);
    let text = serde_json::to_string_pretty(&schema)?;
    output.show(&schema, |_| format!("{text}\n"))?;
    Ok(ExitCode::SUCCESS)
}
