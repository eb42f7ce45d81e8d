//! Guests as verbs name them: by name, by id while they run, or by UUID.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bulkhead_process::warn;
use serde_json::Value;

use crate::guest::{Definition, guest_name};
use crate::live;
use crate::runtime;
use crate::store::Store;
use crate::supervise::control::Request;
use crate::supervise::state::{LastEnd, Reason, RunState, State};

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
    /// The name, id or UUID, as it was given.
    pub(crate) fn words(&self) -> &str {
        let words = self.domain.as_deref().or(self.named.as_deref());
        words.unwrap_or_default()
    }

    /// Finds the guest.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn find(&self) -> anyhow::Result<Domain> {
        Domain::find(self.words())
    }
}

/// A guest that is defined or runs.
#[derive(Clone, Debug)]
pub(crate) struct Domain {
    base: PathBuf,
    /// The definition that it runs with, or else the one in its file.
    definition: Definition,
    /// The definition in its file, which the guest has when it is started next. `None`: the guest is transient.
    pub(crate) defined: Option<Definition>,
    /// The state, while it runs.
    pub(crate) running: Option<State>,
}

impl Domain {
    /// All guests of this user: those that run, by id, then the others, by name. A definition that is damaged is
    /// warned of.
    ///
    /// # Errors
    /// When there is no folder for them.
    pub(crate) fn all() -> anyhow::Result<Vec<Self>> {
        let base = runtime::known_base();
        let mut all: Vec<Self> = live::all(&base)
            .into_iter()
            .map(|state| Self::running(&base, state))
            .collect();
        for entry in Store::open()?.all()? {
            let definition = match entry.definition {
                Ok(definition) => definition,
                Err(error) => {
                    warn(&format!("{error:#}"));
                    continue;
                }
            };
            match all.iter_mut().find(|domain| domain.name() == entry.name) {
                Some(domain) => domain.defined = Some(definition),
                None => all.push(Self::inactive(&base, definition)),
            }
        }
        Ok(all)
    }

    /// Finds a guest by name, id or UUID.
    ///
    /// # Errors
    /// When there is none, or its definition is damaged and it does not run.
    pub(crate) fn find(words: &str) -> anyhow::Result<Self> {
        if guest_name(words).is_ok()
            && let Some(domain) = Self::by_name(words)?
        {
            return Ok(domain);
        }
        let base = runtime::known_base();
        let mut running = live::all(&base).into_iter();
        let found = match running.find(|state| is_called(state, words)) {
            Some(state) => Self::by_name(&state.definition.name)?,
            None => {
                let defined = Store::open()?.find(words)?;
                defined.map(|definition| Self::inactive(&base, definition))
            }
        };
        found.with_context(|| {
            format!(
                "failed to get domain '{words}': there is no such guest, see 'bulkhead list --all'"
            )
        })
    }

    /// Checks that no other guest of this user has the UUID or a MAC address of this one.
    ///
    /// # Errors
    /// When one has.
    pub(crate) fn check_unique(guest: &Definition) -> anyhow::Result<()> {
        let running = live::all(&runtime::known_base());
        let running = running.iter().map(|state| &state.definition);
        Store::open()?.check_unique(guest, running)
    }

    fn by_name(name: &str) -> anyhow::Result<Option<Self>> {
        let base = runtime::known_base();
        let running = live::get(&base, name).map(|state| Self::running(&base, state));
        let defined = Store::open().and_then(|store| store.load(name));
        Ok(match (running, defined) {
            (Some(domain), Ok(defined)) => Some(Self { defined, ..domain }),
            // What is wrong with the file does not matter to the guest that runs.
            (Some(domain), Err(_)) => Some(domain),
            (None, defined) => defined?.map(|defined| Self::inactive(&base, defined)),
        })
    }

    fn running(base: &Path, state: State) -> Self {
        Self {
            base: base.to_owned(),
            definition: state.definition.clone(),
            defined: None,
            running: Some(state),
        }
    }

    fn inactive(base: &Path, definition: Definition) -> Self {
        Self {
            base: base.to_owned(),
            definition: definition.clone(),
            defined: Some(definition),
            running: None,
        }
    }

    /// The definition that it runs with, or else the one in its file.
    pub(crate) fn definition(&self) -> &Definition {
        &self.definition
    }

    /// The definition in its file where the `inactive` one is wanted and there is one, otherwise as [`Self::definition`].
    pub(crate) fn definition_that_is(&self, inactive: bool) -> &Definition {
        let defined = self.defined.as_ref().filter(|_| inactive);
        defined.unwrap_or(&self.definition)
    }

    pub(crate) fn name(&self) -> &str {
        &self.definition.name
    }

    /// The runtime folder, in which the guest has one of its own while it runs.
    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    /// Whether the definition is in a file, and stays when the guest ends.
    pub(crate) fn is_persistent(&self) -> bool {
        self.defined.is_some()
    }

    /// The time that the monitor, and with it the guest's CPUs, has used, in seconds.
    pub(crate) fn cpu_time(&self) -> Option<f64> {
        self.running.as_ref()?.process("vmm")?.cpu_time()
    }

    pub(crate) fn id(&self) -> Option<u32> {
        self.running.as_ref().map(|state| state.id)
    }

    /// The id as tables show it.
    pub(crate) fn shown_id(&self) -> String {
        self.id().map_or("-".to_owned(), |id| id.to_string())
    }

    /// The state and why it is that.
    pub(crate) fn state(&self) -> (RunState, Reason) {
        if let Some(state) = &self.running {
            return (state.state, state.reason);
        }
        match LastEnd::read(&self.base, self.name()) {
            Some(last) => (last.state, last.reason),
            None => (RunState::ShutOff, Reason::Unknown),
        }
    }

    /// The state of the guest, which must run.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) fn must_run(&self) -> anyhow::Result<&State> {
        match &self.running {
            Some(state) => Ok(state),
            None => bail!(
                "domain is not running: 'bulkhead start {}' starts it",
                self.name()
            ),
        }
    }

    /// Has the guest's supervisor carry out a request.
    ///
    /// # Errors
    /// When the guest does not run, or the request is refused.
    pub(crate) fn request(&self, request: &Request) -> anyhow::Result<Value> {
        self.must_run()?;
        live::request(&self.base, self.name(), request)
    }
}

/// Whether a guest has this id or UUID.
fn is_called(state: &State, words: &str) -> bool {
    state.id.to_string() == words || words.parse() == Ok(state.definition.uuid())
}
