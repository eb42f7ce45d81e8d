//! `bulkhead desc` and `bulkhead title`: the texts about a guest.

use std::process::ExitCode;

use anyhow::{Context, bail};

use super::affected::Affected;
use crate::domain::{Domain, DomainArg};
use crate::editor::Editor;
use crate::guest::definition::MetadataChange;
use crate::output::Output;

/// A guest whose description is printed or set.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    #[command(flatten)]
    affected: Affected,
    /// Print or set the title instead
    #[arg(long)]
    title: bool,
    #[command(flatten)]
    new: New,
}

/// A guest whose title is printed or set.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TitleArgs {
    #[command(flatten)]
    domain: DomainArg,
    #[command(flatten)]
    affected: Affected,
    #[command(flatten)]
    new: New,
}

/// The new text.
#[derive(Clone, Debug, clap::Args)]
struct New {
    /// Change the text in an editor
    #[arg(long)]
    edit: bool,
    /// New text; an empty one removes it
    #[arg(value_name = "TEXT")]
    new_desc: Option<Vec<String>>,
    /// The same, as an option
    #[arg(
        long = "new-desc",
        value_name = "TEXT",
        hide = true,
        conflicts_with = "new_desc"
    )]
    new_desc_option: Option<String>,
}

/// Which of the two texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Description,
    Title,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Description => "description",
            Self::Title => "title",
        }
    }
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let kind = match args.title {
        true => Kind::Title,
        false => Kind::Description,
    };
    show_or_set(kind, &args.domain, &args.affected, &args.new, output)
}

pub(crate) fn title(args: &TitleArgs, output: Output) -> anyhow::Result<ExitCode> {
    show_or_set(Kind::Title, &args.domain, &args.affected, &args.new, output)
}

fn show_or_set(
    kind: Kind,
    domain: &DomainArg,
    affected: &Affected,
    new: &New,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let domain = domain.find()?;
    let now = text(kind, &domain, affected)?;
    let word = kind.word();
    let given = new.new_desc.as_ref().map(|words| words.join(" "));
    let given = given.or(new.new_desc_option.clone());
    if given.is_none() && !new.edit {
        let name = domain.name();
        output.show(&now, |now| match now {
            Some(text) => format!("{text}\n"),
            None => format!("No {word} for domain: {name}\n"),
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = given.or(now.clone()).unwrap_or_default();
    if new.edit {
        let bytes = Editor::new(text.as_bytes(), ".txt")?.edit()?;
        text = String::from_utf8(bytes).with_context(|| format!("the {word} is not UTF-8"))?;
        text.truncate(text.trim_end().len());
        if text == now.unwrap_or_default() {
            output.success(&format!("Domain {word} not changed"))?;
            return Ok(ExitCode::SUCCESS);
        }
    }
    if kind == Kind::Title && text.contains('\n') {
        bail!("Domain title can't contain newlines");
    }
    let text = Some(text).filter(|text| !text.is_empty());
    let change = match kind {
        Kind::Description => MetadataChange::Description(text),
        Kind::Title => MetadataChange::Title(text),
    };
    affected.set(&domain, &change)?;
    output.success(&format!("Domain {word} updated successfully"))?;
    Ok(ExitCode::SUCCESS)
}

fn text(kind: Kind, domain: &Domain, affected: &Affected) -> anyhow::Result<Option<String>> {
    let definition = affected.definition(domain)?;
    Ok(match kind {
        Kind::Description => definition.description.clone(),
        Kind::Title => definition.title.clone(),
    })
}
