//! Makes the initramfs of a small Linux guest, to try a monitor with by hand.

#![allow(
    clippy::disallowed_macros,
    reason = "tests, benches and the demo print what they find"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use bulkhead_tests::guest_linux;
use bulkhead_tests::workplace::Workplace;
use clap::Parser;

/// Make the initramfs of a Linux guest that has virtio's drivers and says `guest: up` on its console.
#[derive(Parser)]
struct Args {
    /// Where to write it.
    output: PathBuf,
    /// What the guest runs then, as shell commands; it powers off at their end.
    #[arg(long, default_value = "exec sh")]
    script: String,
    /// The demo's script instead.
    #[arg(long, conflicts_with = "script")]
    demo: bool,
    /// A variable for the script; may be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,
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
    let settings = args
        .settings
        .iter()
        .map(|text| text.split_once('=').context("--set needs NAME=VALUE"));
    let settings = settings.collect::<Result<Vec<_>>>()?;
    let script = if args.demo {
        guest_linux::DEMO_SCRIPT
    } else {
        &args.script
    };
    guest_linux::build(
        &Workplace::find()?.kernel()?,
        script,
        &settings,
        &args.output,
    )
}
