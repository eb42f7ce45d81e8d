//! The end-to-end tests with Linux guests, in the form `cargo test` has: directly where KVM can run Linux, in one outer
//! host of the nested bench otherwise.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use bulkhead_tests::e2e::{KILLS, SCENARIOS, Setting};
use bulkhead_tests::nested::{self, OuterHost};
use bulkhead_tests::workplace::Workplace;
use clap::Parser;

/// All of them, once, must be over within this.
const TIME_LIMIT: Duration = Duration::from_secs(1200);

/// Run the end-to-end tests.
#[derive(Parser)]
struct Args {
    /// How often each is run
    #[arg(long, default_value_t = 1)]
    times: u32,
    /// How many vCPUs the guests have whose number is not part of the test
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// How often a disk's backend is killed in the test of that
    #[arg(long, default_value_t = KILLS)]
    kills: u32,
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
        return Ok(u8::from(!run_here(workplace, args)));
    };
    println!("{why}: on the nested bench");
    let host = OuterHost {
        time_limit: TIME_LIMIT * args.times,
        ..OuterHost::default()
    };
    let mut command = vec!["bulkhead-e2e".to_owned()];
    command.extend(["--times".to_owned(), args.times.to_string()]);
    command.extend(["--cpus".to_owned(), args.cpus.to_string()]);
    command.extend(["--kills".to_owned(), args.kills.to_string()]);
    command.extend_from_slice(&args.filter);
    host.run(&workplace, &command)
}

/// Runs them one after the other; true if none has failed.
fn run_here(workplace: Workplace, args: &Args) -> bool {
    let setting = Setting {
        workplace,
        cpus: args.cpus,
        kills: args.kills,
    };
    let wanted = |name: &str| {
        args.filter.is_empty() || args.filter.iter().any(|part| name.contains(part.as_str()))
    };
    let mut failed = 0;
    let mut passed = 0;
    for _ in 0..args.times {
        for scenario in SCENARIOS.iter().filter(|scenario| wanted(scenario.name)) {
            let start = Instant::now();
            let result = (scenario.run)(&setting);
            let word = if result.is_ok() { "ok" } else { "FAILED" };
            println!("test {} ... {word}", scenario.name);
            println!("  {:.1} s", start.elapsed().as_secs_f64());
            match result {
                Ok(()) => passed += 1,
                Err(error) => {
                    println!("  {error:#}");
                    failed += 1;
                }
            }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored");
    failed == 0
}
