//! `bulkhead edit`: changes the definition of a guest in an editor.

use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};

use crate::domain::DomainArg;
use crate::editor::{Answer, Editor};
use crate::guest::definition::Text;
use crate::output::Output;
use crate::store::Store;

/// A guest whose definition is edited.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// For virsh's sake: a definition is always validated
    #[arg(long, hide = true)]
    skip_validate: bool,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let store = Store::open()?;
    let (name, before) = find(&store, &args.domain)?;
    let name = name.as_str();
    let mut editor = Editor::new(&before, ".toml")?;
    let mut force = false;
    loop {
        let bytes = if force {
            editor.bytes()?
        } else {
            editor.edit()?
        };
        if bytes == before {
            output.success(&format!("Domain '{name}' TOML configuration not changed."))?;
            return Ok(ExitCode::SUCCESS);
        }
        let expected = (!force).then_some(&*before);
        match save(&store, name, &bytes, expected) {
            Ok(()) => break,
            Err(error) => match editor.ask(error)? {
                Answer::Again => force = false,
                Answer::Force => force = true,
            },
        }
    }
    output.success(&format!("Domain '{name}' TOML configuration edited."))?;
    Ok(ExitCode::SUCCESS)
}

/// The name of the guest, and its file. A damaged definition is edited, too, since that is how it is mended.
fn find(store: &Store, domain: &DomainArg) -> anyhow::Result<(String, Vec<u8>)> {
    let name = match domain.find() {
        Ok(domain) => domain.name().to_owned(),
        Err(error) => match store.bytes(domain.words()) {
            Ok(Some(bytes)) => return Ok((domain.words().to_owned(), bytes)),
            _ => return Err(error),
        },
    };
    let bytes = store.bytes(&name)?.with_context(|| {
        format!("domain '{name}' is transient: it has no definition that could be edited")
    })?;
    Ok((name, bytes))
}

/// Saves the definition, if the file still has the `expected` bytes.
fn save(store: &Store, name: &str, bytes: &[u8], expected: Option<&[u8]>) -> anyhow::Result<()> {
    let (text, definition) = Text::parse(bytes).map_err(|wrong| anyhow!("{wrong}"))?;
    if definition.name != name {
        bail!(
            "the name cannot be changed here: 'bulkhead domrename {name} {}' does that",
            definition.name
        );
    }
    let changes = store.change()?;
    if let Some(expected) = expected
        && store.bytes(name)?.is_none_or(|now| now != expected)
    {
        bail!("the TOML configuration was changed by another user");
    }
    changes.define(text, definition, None)?;
    Ok(())
}
