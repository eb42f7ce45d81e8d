//! `bulkhead`: the command people type.
//!
//! It starts and watches the other programs. It may touch their sockets, the runtime folder and the definitions of
//! guests. It opens no image, no tap and no /dev/kvm, and depends on no code of the other programs but protocol types.

#![deny(unsafe_code)]

mod bounded;
mod command_line;
mod domain;
mod editor;
mod guest;
mod host;
mod init;
mod live;
mod output;
mod program;
mod runtime;
mod service;
mod shell;
mod stats;
mod store;
mod supervise;
mod terminal;
mod verbs;

use std::process::ExitCode;

use command_line::Invocation;

fn main() -> ExitCode {
    // The first argument, so that it cannot be a guest's name or the value of an option.
    let first = std::env::args_os().nth(1);
    if first.as_ref().is_some_and(|verb| verb == supervise::VERB) {
        return bulkhead_process::main(|_: SupervisorArgs| supervise::main());
    }
    if first.is_some_and(|verb| verb == service::VERB) {
        return bulkhead_process::main(service::main);
    }
    verbs::completion::answer();
    bulkhead_process::main_with(command_line::parse_own, |invocation| match invocation {
        Invocation::Verb(verb, output) => verb.run(output),
        Invocation::Commands(options, line) => verbs::interactive::run_line(options, &line),
        Invocation::Shell(options) => verbs::interactive::run(options),
    })
}

/// The command line of a supervisor, which this program starts itself.
#[derive(Debug, clap::Parser)]
struct SupervisorArgs {
    _verb: String,
}
