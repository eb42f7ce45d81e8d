//! `bulkhead`: the command people type.
//!
//! It starts and watches the other programs. It may touch their sockets, the runtime folder and the definitions of
//! guests. It opens no image, no tap and no /dev/kvm, and depends on no code of the other programs but protocol types.

#![deny(unsafe_code)]

mod domain;
mod editor;
mod guest;
mod init;
#[allow(dead_code, reason = "the verbs that print use it")]
mod output;
mod program;
mod runtime;
mod shell;
mod store;
mod verbs;

use std::process::ExitCode;

/// Runs virtual machines as separate, confined processes.
#[derive(Debug, clap::Parser)]
#[command(name = "bulkhead", version, about, arg_required_else_help = false)]
struct Args {
    #[command(flatten)]
    output: output::Output,
    #[command(subcommand)]
    verb: verbs::Verb,
}

fn main() -> ExitCode {
    bulkhead_process::main(|args: Args| args.verb.run(args.output))
}
