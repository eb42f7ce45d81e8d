//! `image-tool`: disk images at rest. It takes qemu-img's commands and does what they say.
//!
//! It may touch the image files named on its command line and the backing and data files those name, and nothing
//! else; once they are open it confines itself to them. It must not depend on anything of Bulkhead but `qcow` (the
//! formats) and `bulkhead-process` (confinement, signals).

#![deny(unsafe_code)]

mod buffer;
mod cache;
mod confine;
mod copy;
mod disk;
mod extent_size;
mod format_options;
mod generate;
mod getopt;
mod json;
mod keyval;
mod node;
mod object;
mod open;
mod operand;
mod options;
mod output;
mod probe;
mod progress;
mod reason;
mod report;
mod size;
mod snapshot_list;
mod snapshot_param;
mod source;
mod target;
mod tuning;
mod unfinished;
mod unsynced;
mod verbs;
mod watch;
mod workers;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use getopt::Order;
use report::Usage;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    report::set_program(args.next().as_deref());
    let args: Vec<_> = args.collect();
    bulkhead_process::signals::prepare();
    let outcome = run(&args).and_then(|status| output::check().map(|()| status));
    outcome.unwrap_or_else(|failure| {
        report::failure(&failure);
        unfinished::abandon();
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
        output::line(command.clone().render_long_help().to_string().trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    (verb.run)(&matches)
}
