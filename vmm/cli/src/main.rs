//! `bulkhead`: the command people type.
//!
//! It starts and watches the other programs and talks to their sockets. It opens no image, no tap and no /dev/kvm itself, and depends on
//! the other programs' protocol types at the most, never on their code.

#![deny(unsafe_code)]

mod program;
mod runtime;
mod shell;
mod verbs;

use std::process::ExitCode;

/// Runs virtual machines as separate, confined processes.
#[derive(Debug, clap::Parser)]
#[command(name = "bulkhead", version, about)]
struct Args {
    #[command(subcommand)]
    verb: verbs::Verb,
}

fn main() -> ExitCode {
    bulkhead_process::main(|args: Args| args.verb.run())
}
