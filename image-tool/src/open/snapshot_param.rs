//! The value of `-l`: the id or name of a snapshot, or `snapshot.id=…,snapshot.name=…`.

use anyhow::{Result, anyhow, bail};

use crate::command_line::keyval;
use crate::command_line::source::Source;
use crate::open::{self, Opening};
use crate::output::report;

/// How an internal snapshot is selected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SnapshotParam {
    /// By id, or if no snapshot has that id, by name.
    Either(String),
    /// By id, name, or both.
    Exact {
        id: Option<String>,
        name: Option<String>,
        text: String,
    },
}

impl SnapshotParam {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if !text.starts_with("snapshot.") {
            return Ok(Self::Either(text.to_owned()));
        }
        let items = keyval::split(text, None);
        let known = ["snapshot.id", "snapshot.name"];
        if let Some(item) = items
            .iter()
            .find(|item| !known.contains(&item.key.as_str()))
        {
            report::error(format_args!("Invalid parameter '{}'", item.key));
            bail!("Failed in parsing snapshot param '{text}'");
        }
        let value = |key: &str| {
            items
                .iter()
                .rev()
                .find(|item| item.key == key)
                .and_then(|item| item.value.clone())
        };
        Ok(Self::Exact {
            id: value("snapshot.id"),
            name: value("snapshot.name"),
            text: text.to_owned(),
        })
    }

    /// Finds the snapshot in the image and returns its id.
    pub(crate) fn resolve(&self, source: &Source, opening: &Opening) -> Result<String> {
        let alone = Opening {
            alone: true,
            snapshot: None,
            ..opening.clone()
        };
        let opened = open::open(source, &alone)?;
        if !opened.image.format().has_snapshots() {
            bail!(
                "Failed to load snapshot: Block format 'raw' used by device '' does not support temporarily loading internal snapshots"
            );
        }
        let snapshots = opened.info()?.snapshots;
        let found = match self {
            Self::Either(wanted) => snapshots
                .iter()
                .find(|snapshot| snapshot.id == *wanted)
                .or_else(|| snapshots.iter().find(|snapshot| snapshot.name == *wanted)),
            Self::Exact {
                id: None,
                name: None,
                text,
            } => bail!("Failed in parsing snapshot param '{text}'"),
            Self::Exact { id, name, .. } => snapshots.iter().find(|snapshot| {
                id.as_ref().is_none_or(|id| snapshot.id == *id)
                    && name.as_ref().is_none_or(|name| snapshot.name == *name)
            }),
        };
        let found = found.ok_or_else(|| anyhow!("Failed to load snapshot: Can't find snapshot"))?;
        Ok(found.id.clone())
    }
}
