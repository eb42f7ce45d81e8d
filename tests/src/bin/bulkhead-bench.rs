//! Measures the figures and prints them, one line each; writes them as JSON and as a picture too.

#![allow(
    clippy::disallowed_macros,
    reason = "tests, benches and the demo print what they find"
)]

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bulkhead_tests::figures::{Aim, FIGURES, Figure, MARK, Measurement, save};
use bulkhead_tests::workplace::Workplace;
use clap::Parser;

/// Measure Bulkhead.
#[derive(Parser)]
struct Args {
    /// Measure here, whatever the figure needs, and print it for a program to read.
    #[arg(long, hide = true)]
    here: bool,
    /// Only these figures; `image` stands for all whose name begins with `image-`.
    figures: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let workplace = Workplace::find()?;
    if let Some(unknown) = args
        .figures
        .iter()
        .find(|name| FIGURES.iter().all(|figure| !figure.is_named(name)))
    {
        let names: Vec<&str> = FIGURES.iter().map(|figure| figure.name).collect();
        bail!("there is no figure '{unknown}': {}", names.join(", "));
    }
    let wanted = |figure: &&Figure| {
        args.figures.is_empty() || args.figures.iter().any(|name| figure.is_named(name))
    };
    let mut all = Vec::new();
    for figure in FIGURES.iter().filter(wanted) {
        if args.here {
            for measurement in (figure.measure)(&workplace)? {
                println!(
                    "{MARK}{}",
                    serde_json::to_string(&measurement).context("JSON")?
                );
            }
            continue;
        }
        let measured = figure
            .run(&workplace)
            .with_context(|| figure.name.to_owned())?;
        measured.iter().for_each(print);
        all.extend(measured);
    }
    if !args.here {
        let folder = workplace.target.join("bench-results");
        save(&all, &folder)?;
        println!("{}/figures.json, figures.svg", folder.display());
    }
    Ok(())
}

fn print(measurement: &Measurement) {
    let Measurement {
        name, value, unit, ..
    } = measurement;
    let mut line = format!("{name:<52} {value:>9.3} {unit:<6}");
    if let (Some((peer, theirs)), Some(ratio)) = (&measurement.peer, measurement.ratio()) {
        line += &format!(" {peer} {theirs:.3}, {ratio:.2} of it");
    }
    if let (Some(aim), Some(met)) = (measurement.aim, measurement.is_met()) {
        let (Aim::Ratio(most) | Aim::AtMost(most)) = aim;
        let verdict = if met { "met" } else { "missed" };
        line += &format!(" (at most {most}: {verdict})");
    }
    println!("{}", line.trim_end());
}
