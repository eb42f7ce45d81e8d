//! `bulkhead`: the command people type.
//!
//! It starts and watches the other programs. It may touch their sockets and the runtime folder; it opens no image, no tap and no /dev/kvm
//! itself, and depends on the other programs' protocol types at the most, never on their code.

#![deny(unsafe_code)]

mod init;
mod program;
mod runtime;
mod shell;
mod verbs;

use std::process::ExitCode;

/// Runs virtual machines as separate, confined processes.
#[derive(Debug, clap::Parser)]
#[command(name = "bulkhead", version, about, arg_required_else_help = false)]
struct Args {
    #[command(subcommand)]
    verb: verbs::Verb,
}

fn main() -> ExitCode {
    bulkhead_process::main(|args: Args| args.verb.run())
}
