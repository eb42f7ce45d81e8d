//! `bulkhead vcpucount`: prints how many virtual CPUs a guest has.

use std::process::ExitCode;

use anyhow::bail;
use serde::Serialize;

use super::affected::TRANSIENT;
use crate::domain::{Domain, DomainArg};
use crate::output::Output;

/// A guest whose virtual CPUs are counted.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// Print the most that the guest can have, which is as many as it has
    #[arg(long, conflicts_with = "active")]
    maximum: bool,
    /// Print how many the guest has
    #[arg(long)]
    active: bool,
    /// Count those that it runs with
    #[arg(long, conflicts_with_all = ["config", "current"])]
    live: bool,
    /// Count those of the definition in its file
    #[arg(long, conflicts_with = "current")]
    config: bool,
    /// Count those that it runs with, or else those of the definition in its file
    #[arg(long)]
    current: bool,
}

/// The counts, of which a guest has those that apply to it.
#[derive(Debug, Serialize)]
struct Counts {
    config: Option<u8>,
    live: Option<u8>,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    let counts = Counts::of(&domain);
    if args.wants_all() {
        output.show(&counts, Counts::text)?;
    } else {
        let count = args.one(&domain, &counts)?;
        output.show(&count, |count| format!("{count}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn wants_all(&self) -> bool {
        ![
            self.maximum,
            self.active,
            self.live,
            self.config,
            self.current,
        ]
        .contains(&true)
    }

    fn one(&self, domain: &Domain, counts: &Counts) -> anyhow::Result<u8> {
        if self.config {
            return match counts.config {
                Some(count) => Ok(count),
                None => bail!(TRANSIENT),
            };
        }
        if self.live {
            domain.must_run()?;
        }
        Ok(domain.definition().cpus)
    }
}

impl Counts {
    fn of(domain: &Domain) -> Self {
        let running = domain.running.as_ref();
        Self {
            config: domain.defined.as_ref().map(|defined| defined.cpus),
            live: running.map(|state| state.definition.cpus),
        }
    }

    fn text(&self) -> String {
        let lines = ["maximum", "current"].into_iter().flat_map(|what| {
            let of = [("config", self.config), ("live", self.live)];
            of.into_iter().filter_map(move |(which, count)| {
                Some(format!("{what:<12} {which:<12} {:>3}\n", count?))
            })
        });
        lines.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_virshs() {
        let counts = Counts {
            config: Some(2),
            live: Some(2),
        };
        // As virsh 9.0 prints it of its test guest.
        assert_eq!(
            counts.text(),
            "maximum      config         2\nmaximum      live           2\n\
             current      config         2\ncurrent      live           2\n"
        );
    }
}
