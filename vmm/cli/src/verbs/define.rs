//! `bulkhead define`: makes a TOML file the definition of a guest.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};

use crate::guest::definition::Text;
use crate::output::Output;
use crate::store::{self, Store};
use crate::{live, runtime};

/// A guest that is defined, or redefined.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    file: FileArg,
    /// For virsh's sake: a definition is always validated
    #[arg(long)]
    validate: bool,
}

/// The file with a definition.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct FileArg {
    /// TOML file with the definition; - is standard input
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same, as an option
    #[arg(long = "file", value_name = "FILE", hide = true)]
    named: Option<PathBuf>,
}

impl FileArg {
    pub(crate) fn path(&self) -> &Path {
        let path = self.file.as_deref().or(self.named.as_deref());
        path.unwrap_or(Path::new("-"))
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// When it cannot be read, or is too large for a definition.
    pub(crate) fn read(&self) -> anyhow::Result<Vec<u8>> {
        let path = self.path();
        if path == Path::new("-") {
            return store::bounded(std::io::stdin().lock(), "standard input");
        }
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("Failed to open file '{shown}'"))?;
        store::bounded(file, &format!("'{shown}'"))
    }
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let shown = args.file.path().display();
    let bytes = args.file.read()?;
    let failed = || format!("Failed to define domain from {shown}");
    let (text, definition) = Text::parse(&bytes)
        .map_err(|wrong| anyhow!("{wrong}"))
        .with_context(failed)?;
    let running = live::get(&runtime::known_base(), &definition.name);
    let running = running.map(|state| state.definition);
    let store = Store::open()?;
    let defined = store
        .change()
        .and_then(|changes| changes.define(text, definition, running))
        .with_context(failed)?;
    output.success(&format!("Domain '{}' defined from {shown}", defined.name))?;
    Ok(ExitCode::SUCCESS)
}
