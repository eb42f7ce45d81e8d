//! `bulkhead domifstat`: prints what went through a network card of a guest.

use std::process::ExitCode;

use anyhow::{Context, bail};

use crate::domain::{Domain, DomainArg};
use crate::output::Output;
use crate::stats::interface::{self, Counters};

/// A network card whose counters are printed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    #[command(flatten)]
    interface: InterfaceArg,
}

/// A network card.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct InterfaceArg {
    /// Card: its interface on the host as 'domiflist' shows it, its MAC address, or net0, net1, and so on
    #[arg(value_name = "INTERFACE")]
    interface: Option<String>,
    /// The same, as an option
    #[arg(long = "interface", value_name = "INTERFACE", hide = true)]
    named_interface: Option<String>,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    let wanted = args.interface.words();
    let name = domain.name();
    let counters = look(&domain, wanted)
        .with_context(|| format!("Failed to get interface stats {name} {wanted}"))?;
    output.show(&counters, |counters| text(wanted, counters))?;
    Ok(ExitCode::SUCCESS)
}

impl InterfaceArg {
    fn words(&self) -> &str {
        let words = self
            .interface
            .as_deref()
            .or(self.named_interface.as_deref());
        words.unwrap_or_default()
    }
}

fn look(domain: &Domain, wanted: &str) -> anyhow::Result<Counters> {
    domain.must_run()?;
    let cards = interface::of(domain);
    let Some(card) = cards.iter().find(|card| card.is_called(wanted)) else {
        bail!(
            "invalid argument: '{wanted}' is not a known interface: 'bulkhead domiflist {}' lists them",
            domain.name()
        );
    };
    let counters = card.tap.as_deref().and_then(interface::counters);
    counters.with_context(|| format!("{} has no TAP device at the moment", card.process))
}

/// A line for each counter, which begins with the word by which the card was named.
fn text(wanted: &str, counters: &Counters) -> String {
    let lines = counters.named().into_iter();
    lines
        .map(|(name, value)| format!("{wanted} {name} {value}\n"))
        .collect()
}
