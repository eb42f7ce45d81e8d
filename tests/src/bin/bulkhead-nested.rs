//! Runs a command in an outer host of the nested bench, with its output on standard output and its exit status.

#![allow(
    clippy::disallowed_macros,
    reason = "tests, benches and the demo print what they find"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bulkhead_tests::nested::{Clock, OuterHost};
use bulkhead_tests::workplace::Workplace;
use clap::Parser;

/// Run a command in an outer host that has a complete /dev/kvm.
#[derive(Parser)]
struct Args {
    /// Memory of the outer host in MiB.
    #[arg(long, default_value_t = 4096)]
    memory: u32,
    /// Seconds after which it is stopped.
    #[arg(long, default_value_t = 300)]
    time_limit: u64,
    /// Let time count instructions, on one processor: the same run gives the same figure.
    #[arg(long)]
    icount: bool,
    /// A further program of this machine for the outer host; may be repeated.
    #[arg(long = "with", value_name = "PROGRAM")]
    extra_programs: Vec<PathBuf>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let host = OuterHost {
        memory: args.memory,
        clock: if args.icount {
            Clock::Instructions
        } else {
            Clock::Host
        },
        time_limit: Duration::from_secs(args.time_limit),
        extra_programs: args.extra_programs,
    };
    match Workplace::find().and_then(|workplace| host.run(&workplace, &args.command)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
