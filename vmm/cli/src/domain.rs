//! Guests as verbs name them: by name or by UUID.

use anyhow::Context;

use crate::guest::Definition;
use crate::store::Store;

/// The guest that a verb is about.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct DomainArg {
    /// Guest: its name, id or UUID
    #[arg(value_name = "DOMAIN")]
    domain: Option<String>,
    /// The same, as an option
    #[arg(long = "domain", value_name = "DOMAIN", hide = true)]
    named: Option<String>,
}

impl DomainArg {
    /// Finds the guest.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn find(&self) -> anyhow::Result<Domain> {
        let words = self.domain.as_deref().or(self.named.as_deref());
        Domain::find(words.unwrap_or_default())
    }
}

/// A guest that is defined.
#[derive(Clone, Debug)]
pub(crate) struct Domain {
    /// The definition in its file.
    pub(crate) defined: Option<Definition>,
}

impl Domain {
    /// Finds a guest by name or UUID.
    pub(crate) fn find(words: &str) -> anyhow::Result<Self> {
        let defined = Store::open()?.find(words)?;
        defined.map(|defined| Self { defined: Some(defined) }).with_context(|| {
            format!("failed to get domain '{words}': there is no such guest, see 'bulkhead list --all'")
        })
    }

    /// The definition that the guest runs with, or else the one in its file.
    pub(crate) fn definition(&self) -> &Definition {
        match &self.defined {
            Some(defined) => defined,
            None => unreachable!("a guest is defined"),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.definition().name
    }
}
