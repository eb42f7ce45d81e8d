//! `--live`, `--config` and `--current`: which of a guest's definitions a verb is about.

use anyhow::{Context, bail};

use crate::domain::Domain;
use crate::guest::Definition;

/// The definition that the guest runs with, or the one in its file.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Affected {
    /// The definition that the guest runs with
    #[arg(long, conflicts_with = "current")]
    live: bool,
    /// The definition in its file, which it has when it is started next
    #[arg(long, conflicts_with = "current")]
    config: bool,
    /// The one that it has now: the first if it runs, otherwise the second
    #[arg(long)]
    current: bool,
}

impl Affected {
    /// The definition that is printed.
    ///
    /// # Errors
    /// When the guest does not have it.
    pub(crate) fn definition(self, domain: &Domain) -> anyhow::Result<&Definition> {
        if self.config {
            let name = domain.name();
            return domain.defined.as_ref().with_context(|| transient(name));
        }
        if self.live {
            bail!("Requested operation is not valid: domain is not running");
        }
        Ok(domain.definition())
    }

    /// Checks that the definition in the file is the one to change.
    ///
    /// # Errors
    /// When it is another one.
    pub(crate) fn check_change(self, domain: &Domain) -> anyhow::Result<()> {
        if self.live {
            bail!("Requested operation is not valid: domain is not running");
        }
        match domain.defined {
            Some(_) => Ok(()),
            None => bail!(transient(domain.name())),
        }
    }
}

fn transient(name: &str) -> String {
    format!(
        "Requested operation is not valid: domain '{name}' is transient: it has no definition on disk"
    )
}
