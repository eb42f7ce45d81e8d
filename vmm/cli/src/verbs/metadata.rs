//! `bulkhead metadata`: texts of other programs about a guest, each under a URI of the program's own.

use std::process::ExitCode;

use anyhow::{Context, bail};

use super::affected::Affected;
use crate::domain::DomainArg;
use crate::editor::Editor;
use crate::guest::definition::MetadataChange;
use crate::output::Output;

/// A guest and the URI of a text about it, which is printed, set or removed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    #[command(flatten)]
    uri: Uri,
    #[command(flatten)]
    affected: Affected,
    /// Change the text in an editor
    #[arg(long, conflicts_with_all = ["set", "remove"])]
    edit: bool,
    /// For virsh's sake: TOML has no prefixes of namespaces
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// New text: of any form, XML or JSON for example
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    set: Option<String>,
    /// Remove the text
    #[arg(long, conflicts_with = "set")]
    remove: bool,
}

#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Uri {
    /// URI of the text
    uri: Option<String>,
    /// The same, as an option
    #[arg(long = "uri", value_name = "URI", hide = true)]
    uri_option: Option<String>,
}

impl Uri {
    fn words(&self) -> &str {
        let words = self.uri.as_deref().or(self.uri_option.as_deref());
        words.unwrap_or_default()
    }
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    const MISSING: &str = "metadata not found: Requested metadata element is not present";
    let domain = args.domain.find()?;
    let now = args
        .affected
        .definition(&domain)?
        .metadata
        .get(args.uri.words());
    let change = |text: Option<&str>| {
        let change = MetadataChange::Element {
            uri: args.uri.words().to_owned(),
            text: text.map(str::to_owned),
        };
        args.affected.set(&domain, &change)
    };
    if args.remove {
        change(None)?;
        output.success("Metadata removed")?;
    } else if let Some(text) = &args.set {
        change(Some(text))?;
        output.success("Metadata modified")?;
    } else if args.edit {
        let before = now.cloned().unwrap_or_default();
        let bytes = Editor::new(before.as_bytes(), ".txt")?.edit()?;
        let text = String::from_utf8(bytes).context("the text is not UTF-8")?;
        let text = text.trim_end();
        if text == before.trim_end() {
            output.success("Metadata not changed")?;
        } else {
            change(Some(text).filter(|text| !text.is_empty()))?;
            output.success("Metadata modified")?;
        }
    } else {
        let Some(text) = now else { bail!(MISSING) };
        output.show(text, |text| format!("{text}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
