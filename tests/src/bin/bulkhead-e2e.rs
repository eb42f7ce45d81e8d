//! The end-to-end tests with Linux guests, in the form `cargo test` has: directly where KVM can run Linux, in one outer
//! host of the nested bench otherwise.

#![allow(
    clippy::disallowed_macros,
    reason = "tests, benches and the demo print what they find"
)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bulkhead_tests::e2e::{FILE_KIB, KILLS, SCENARIOS, Setting};
use bulkhead_tests::nested::{self, End, OuterHost};
use bulkhead_tests::workplace::Workplace;
use clap::Parser;

/// All of them, once, must be over within this.
const TIME_LIMIT: Duration = Duration::from_secs(1200);
/// So often in a row an outer host may end by its own kernel's stack overflow before one test is over.
const OVERFLOWS: u32 = 3;

/// Run the end-to-end tests.
#[derive(Parser)]
struct Args {
    /// How often each is run
    #[arg(long, default_value_t = 1)]
    times: u32,
    /// How many of these runs to leave out
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// How many vCPUs the guests have whose number is not part of the test
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// How often a disk's backend is killed in the test of that
    #[arg(long, default_value_t = KILLS)]
    kills: u32,
    /// How many KiB each file has at most that is written meanwhile
    #[arg(long, default_value_t = FILE_KIB)]
    file_kib: u32,
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
    run_nested(&workplace, args)
}

/// Runs them in one outer host; in another one what is left where the kernel of that has overflowed its stack.
fn run_nested(workplace: &Workplace, args: &Args) -> Result<u8> {
    let host = OuterHost {
        time_limit: TIME_LIMIT * args.times,
        ..OuterHost::default()
    };
    let (mut skip, mut overflows, mut has_failed) = (args.skip, 0, false);
    loop {
        let mut command = vec!["bulkhead-e2e".to_owned()];
        for (option, value) in [
            ("--times", args.times.to_string()),
            ("--skip", skip.to_string()),
            ("--cpus", args.cpus.to_string()),
            ("--kills", args.kills.to_string()),
            ("--file-kib", args.file_kib.to_string()),
        ] {
            command.extend([option.to_owned(), value]);
        }
        command.extend_from_slice(&args.filter);
        let mut output = Vec::new();
        let end = host.run_watched(workplace, &command, &mut |bytes| output.extend(bytes))?;
        let output = String::from_utf8_lossy(&output);
        let over = |word: &str| {
            let is_of = |line: &&str| line.starts_with("test ") && line.ends_with(word);
            output.lines().filter(is_of).count()
        };
        let (passed, failed) = (over("... ok"), over("... FAILED"));
        has_failed |= failed > 0;
        match end {
            End::Status(code) => return Ok(code.max(u8::from(has_failed))),
            End::StackOverflow(console) => {
                overflows = if passed + failed > 0 {
                    1
                } else {
                    overflows + 1
                };
                ensure!(
                    overflows < OVERFLOWS,
                    "{overflows} times the outer host's own kernel has overflowed its stack; the end of its console:\n{console}"
                );
                println!(
                    "the outer host's own kernel has overflowed its stack, which is the emulation's fault: what is left runs in another one\n{console}"
                );
                skip += passed + failed;
            }
        }
    }
}

/// Runs them one after the other; true if none has failed.
fn run_here(workplace: Workplace, args: &Args) -> bool {
    let setting = Setting {
        workplace,
        cpus: args.cpus,
        kills: args.kills,
        file_kib: args.file_kib,
    };
    let wanted = |name: &str| {
        args.filter.is_empty() || args.filter.iter().any(|part| name.contains(part.as_str()))
    };
    let wanted = || SCENARIOS.iter().filter(|scenario| wanted(scenario.name));
    let mut failed = 0;
    let mut passed = 0;
    for scenario in (0..args.times).flat_map(|_| wanted()).skip(args.skip) {
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
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored");
    failed == 0
}
