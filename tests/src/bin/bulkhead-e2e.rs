//! The end-to-end tests with Linux guests, in the form `cargo test` has: directly where KVM can run Linux, in one outer
//! host of the nested bench otherwise.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bulkhead_tests::e2e::SCENARIOS;
use bulkhead_tests::nested::OuterHost;
use bulkhead_tests::probe::{Verdict, probe};
use bulkhead_tests::workplace::{Workplace, in_outer_host};
use clap::Parser;

/// Run the end-to-end tests.
#[derive(Parser)]
struct Args {
    /// Only the tests whose name contains one of these.
    filter: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<u8> {
    let workplace = Workplace::find()?;
    let verdict = probe()?;
    println!("{verdict}");
    match verdict {
        Verdict::CanRunLinux => Ok(u8::from(!run_here(&workplace, &args.filter))),
        Verdict::CannotRunLinux(_) if in_outer_host() => {
            bail!("the outer host's KVM cannot run Linux")
        }
        Verdict::CannotRunLinux(_) => {
            let host = OuterHost {
                time_limit: Duration::from_secs(900),
                ..OuterHost::default()
            };
            let mut command = vec!["bulkhead-e2e".to_owned()];
            command.extend_from_slice(&args.filter);
            host.run(&workplace, &command)
        }
    }
}

/// Runs them one after the other; true if none has failed.
fn run_here(workplace: &Workplace, filter: &[String]) -> bool {
    let mut failed = Vec::new();
    let mut passed = 0;
    for scenario in &SCENARIOS {
        if !filter.is_empty() && !filter.iter().any(|part| scenario.name.contains(part)) {
            continue;
        }
        let start = Instant::now();
        let result = (scenario.run)(workplace);
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        println!("test {} ... {word}", scenario.name);
        println!("  {:.1} s", start.elapsed().as_secs_f64());
        match result {
            Ok(()) => passed += 1,
            Err(error) => {
                println!("  {error:#}");
                failed.push(scenario.name);
            }
        }
    }
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {} failed; 0 ignored",
        failed.len()
    );
    failed.is_empty()
}
