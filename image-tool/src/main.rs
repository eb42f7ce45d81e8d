//! `image-tool`: disk images at rest, with qemu-img's commands, options and output.
//!
//! It may touch the images named on its command line and the backing and data files that they record: it opens them,
//! and then confines itself to them. Of Bulkhead's crates it may depend only on `qcow` (the formats) and
//! `bulkhead-process` (confinement, signals).
//!
//! | folder | holds |
//! |---|---|
//! | `verbs/` | a file for each verb: its options and its work |
//! | `command_line/` | getopt, the options that verbs share, `-o` lists, sizes, and in `source/` what names an image |
//! | `open/` | an image and its backing chain, from a [`Source`](command_line::source::Source) to an open image |
//! | `target/` | the file that a verb makes: staged, written in place, or a stream |
//! | `copy/` | the copy of `convert` and `commit`: what to copy, and the threads that read and write it |
//! | `output/` | standard output and standard error: JSON, lists, progress, error messages |

#![deny(unsafe_code)]

mod command_line;
mod confine;
mod copy;
mod generate;
mod open;
mod output;
mod signals;
mod target;
mod verbs;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use command_line::getopt::{self, Order};
use command_line::source::operand;
use output::report::{self, Usage};
use target::incomplete;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    report::set_program(args.next().as_deref());
    let args: Vec<_> = args.collect();
    bulkhead_process::signals::prepare();
    let outcome = run(&args).and_then(|status| output::check().map(|()| status));
    outcome.unwrap_or_else(|failure| {
        report::failure(&failure);
        incomplete::clean_up();
        ExitCode::FAILURE
    })
}

fn run(args: &[OsString]) -> Result<ExitCode> {
    let standard =
        getopt::parse(&verbs::program(), args, Order::StopAtOperand).map_err(|message| Usage {
            verb: None,
            message,
            from_getopt: true,
        })?;
    if standard.flag("help") {
        output::line(&verbs::overview());
        return Ok(ExitCode::SUCCESS);
    }
    if standard.flag("version") {
        output::line(&report::version());
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(shell) = standard.text("completions") {
        generate::completions(verbs::whole(), &shell)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(folder) = standard.value("man-pages") {
        generate::man_pages(verbs::whole(), folder.as_ref())?;
        return Ok(ExitCode::SUCCESS);
    }
    if standard.flag("follow-json-names") {
        operand::follow_json_names();
    }
    let usage = |message: String| Usage {
        verb: None,
        message,
        from_getopt: false,
    };
    let (name, args) = standard
        .operands()
        .split_first()
        .ok_or_else(|| usage("Not enough arguments".to_owned()))?;
    let verb = verbs::find(name)
        .ok_or_else(|| usage(format!("Command not found: {}", name.to_string_lossy())))?;
    let command = (verb.command)();
    let matches = getopt::parse(&command, args, verb.order).map_err(|message| Usage {
        verb: Some(verb.name),
        message,
        from_getopt: true,
    })?;
    if matches.flag("help") {
        let mut named = command
            .clone()
            .bin_name(format!("{} {}", report::program(), verb.name));
        output::line(named.render_long_help().to_string().trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    (verb.run)(&matches)
}
