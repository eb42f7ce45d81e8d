//! The end-to-end tests with Linux guests, in the form `cargo test` has: directly where KVM can run Linux, in one outer
//! host of the nested bench otherwise.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use bulkhead_tests::e2e::SCENARIOS;
use bulkhead_tests::nested::{self, OuterHost};
use bulkhead_tests::workplace::Workplace;
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
    let Some(why) = nested::needed()? else {
        return Ok(u8::from(!run_here(&workplace, &args.filter)));
    };
    println!("{why}: on the nested bench");
    let host = OuterHost {
        time_limit: Duration::from_secs(1200),
        ..OuterHost::default()
    };
    let mut command = vec!["bulkhead-e2e".to_owned()];
    command.extend_from_slice(&args.filter);
    host.run(&workplace, &command)
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
