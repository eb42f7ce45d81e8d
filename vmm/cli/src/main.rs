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
mod shell;
mod stats;
mod store;
mod supervise;
mod terminal;
mod verbs;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    // The first argument, so that it cannot be a guest's name or the value of an option.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|verb| verb == supervise::VERB)
    {
        return bulkhead_process::main(|_: SupervisorArgs| supervise::main());
    }
    bulkhead_process::main_with(command_line::parse, |args| match args.verb {
        Some(verb) => verb.run(args.output),
        None => {
            let help = verbs::help::grouped(&command_line::command());
            // Where standard error is closed, the status says it alone.
            let _ = std::io::stderr().write_all(help.as_bytes());
            Ok(ExitCode::from(bulkhead_process::USAGE))
        }
    })
}

/// The command line of a supervisor, which this program starts itself.
#[derive(Debug, clap::Parser)]
struct SupervisorArgs {
    _verb: String,
}
