//! Measures the figures and prints them, one line each; writes them as JSON and as a picture too.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bulkhead_tests::figures::{FIGURES, Figure, MARK, Measurement, save};
use bulkhead_tests::workplace::Workplace;
use clap::Parser;

/// Measure Bulkhead.
#[derive(Parser)]
struct Args {
    /// Measure here, whatever the figure needs, and print it for a program to read.
    #[arg(long, hide = true)]
    here: bool,
    /// Only these figures.
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
        .find(|name| FIGURES.iter().all(|figure| figure.name != **name))
    {
        let names: Vec<&str> = FIGURES.iter().map(|figure| figure.name).collect();
        bail!("there is no figure '{unknown}': {}", names.join(", "));
    }
    let wanted = |figure: &&Figure| {
        args.figures.is_empty() || args.figures.iter().any(|name| name == figure.name)
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
        name,
        value,
        unit,
        peer,
    } = measurement;
    match peer {
        Some((peer, theirs)) => println!("{name:<36} {value:>10.2} {unit:<10} {peer} {theirs:.2}"),
        None => println!("{name:<36} {value:>10.2} {unit}"),
    }
}
