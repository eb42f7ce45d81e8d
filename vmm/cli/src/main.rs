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
#[allow(dead_code, reason = "the verbs that print use it")]
mod output;
mod program;
mod runtime;
mod shell;
mod store;
mod verbs;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
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
