//! `bulkhead list`: lists guests.

use std::process::ExitCode;

use serde::Serialize;

use crate::domain::Domain;
use crate::output::{Output, Table};
use crate::supervise::state::RunState;

/// Which guests are listed, and what of them is printed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// List guests that do not run
    #[arg(long)]
    inactive: bool,
    /// List guests that run and those that do not
    #[arg(long)]
    all: bool,
    /// List guests without a definition in a file
    #[arg(long)]
    transient: bool,
    /// List guests with a definition in a file
    #[arg(long)]
    persistent: bool,
    /// List guests that run
    #[arg(long)]
    state_running: bool,
    /// List guests that are suspended
    #[arg(long)]
    state_paused: bool,
    /// List guests that are shut off
    #[arg(long)]
    state_shutoff: bool,
    /// List guests in any other state
    #[arg(long)]
    state_other: bool,
    /// List guests that are started with the host
    #[arg(long)]
    autostart: bool,
    /// List guests that are not started with the host
    #[arg(long)]
    no_autostart: bool,
    /// Print UUIDs, one a line
    #[arg(long, conflicts_with = "table")]
    uuid: bool,
    /// Print names, one a line
    #[arg(long, conflicts_with = "table")]
    name: bool,
    /// Print ids, one a line
    #[arg(long, conflicts_with = "table")]
    id: bool,
    /// Print a table, which is the default
    #[arg(long)]
    table: bool,
    /// Add the guests' titles to the table
    #[arg(long)]
    title: bool,
}

/// A guest, as the list shows it.
#[derive(Debug, Serialize)]
struct Row {
    id: Option<u32>,
    name: String,
    uuid: String,
    state: String,
    title: Option<String>,
    persistent: bool,
    autostart: bool,
    /// Whether its monitor is of another version than this program.
    outdated: bool,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domains = Domain::all()?;
    let rows: Vec<Row> = domains
        .iter()
        .filter(|domain| args.includes(domain))
        .map(Row::new)
        .collect();
    if args.name || args.uuid || args.id {
        output.show(&rows, |rows| {
            rows.iter().map(|row| args.line(row)).collect()
        })?;
    } else {
        output.show_table(&rows, |rows| args.table(rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn includes(&self, domain: &Domain) -> bool {
        let runs = domain.running.is_some();
        let state = domain.state().0;
        let by_state = [
            (
                self.state_running,
                matches!(state, RunState::Running | RunState::Starting),
            ),
            (self.state_paused, state == RunState::Paused),
            (self.state_shutoff, state == RunState::ShutOff),
            (
                self.state_other,
                matches!(state, RunState::InShutdown | RunState::Crashed),
            ),
        ];
        let asks_state = by_state.iter().any(|(asked, _)| *asked);
        // Asking for a state, or for guests by their definition, is not limited to those that run.
        let by_activity = self.all || asks_state || self.inactive != runs;
        let is_persistent = domain.is_persistent();
        let starts = domain.definition().autostart;
        by_activity
            && (!asks_state || by_state.contains(&(true, true)))
            && one_of((self.persistent, self.transient), is_persistent)
            && one_of((self.autostart, self.no_autostart), starts)
    }

    fn line(&self, row: &Row) -> String {
        let mut words = Vec::new();
        if self.id {
            words.push(row.id.map_or("-".to_owned(), |id| id.to_string()));
        }
        if self.uuid {
            words.push(row.uuid.clone());
        }
        if self.name {
            words.push(row.name.clone());
        }
        format!("{}\n", words.join("   "))
    }

    fn table(&self, rows: &[Row]) -> Table {
        let mut table = Table::new(["Id", "Name", "State"]);
        if self.title {
            table.column("Title");
        }
        for row in rows {
            let id = row.id.map_or("-".to_owned(), |id| id.to_string());
            let mut state = row.state.clone();
            if row.outdated {
                state.push_str(" (old monitor)");
            }
            let mut cells = vec![id, row.name.clone(), state];
            if self.title {
                cells.push(row.title.clone().unwrap_or_default());
            }
            table.row(cells);
        }
        table
    }
}

/// Whether a guest that `is` so or not is wanted by a pair of options, of which both or neither mean all guests.
fn one_of((wanted, unwanted): (bool, bool), is: bool) -> bool {
    wanted == unwanted || wanted == is
}

impl Row {
    fn new(domain: &Domain) -> Self {
        let definition = domain.definition();
        let version = domain.running.as_ref().map(|state| state.version.as_str());
        Self {
            id: domain.id(),
            name: definition.name.clone(),
            uuid: definition.uuid().to_string(),
            state: domain.state().0.to_string(),
            title: definition.title.clone(),
            persistent: domain.is_persistent(),
            autostart: definition.autostart,
            outdated: version.is_some_and(|version| version != env!("CARGO_PKG_VERSION")),
        }
    }
}
