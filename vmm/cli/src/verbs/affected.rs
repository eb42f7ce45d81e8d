//! `--live`, `--config` and `--current`: which of a guest's definitions a verb is about.

use anyhow::{Context, bail};

use crate::domain::Domain;
use crate::guest::Definition;
use crate::guest::definition::MetadataChange;
use crate::store::Store;
use crate::supervise::control::Request;

const NOT_RUNNING: &str = "Requested operation is not valid: domain is not running";
pub(crate) const TRANSIENT: &str =
    "Requested operation is not valid: transient domains do not have any persistent config";

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
        let (_, config) = self.both(domain)?;
        match &domain.defined {
            Some(defined) if config => Ok(defined),
            _ => Ok(domain.definition()),
        }
    }

    /// Changes a text about a guest.
    ///
    /// # Errors
    /// When the guest does not have the definition that is to change, or it cannot be changed.
    pub(crate) fn set(self, domain: &Domain, change: &MetadataChange) -> anyhow::Result<()> {
        let (live, config) = self.both(domain)?;
        if config {
            let store = Store::open()?;
            let changes = store.change()?;
            changes.update(domain.name(), |text| text.set_metadata(change))?;
        }
        if live {
            let change = change.clone();
            let request = Request::SetMetadata { change };
            domain
                .request(&request)
                .context("the running domain was not changed")?;
        }
        Ok(())
    }

    /// Whether the verb is about the definition that the guest runs with, and about the one in its file.
    fn both(self, domain: &Domain) -> anyhow::Result<(bool, bool)> {
        let runs = domain.running.is_some();
        let (live, config) = match (self.live, self.config) {
            (false, false) => (runs, !runs),
            both => both,
        };
        if live && !runs {
            bail!(NOT_RUNNING);
        }
        if config && !domain.is_persistent() {
            bail!(TRANSIENT);
        }
        Ok((live, config))
    }
}
