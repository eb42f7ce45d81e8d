//! A sequence of commands, and the verbs that only make sense in one.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::Context;
use bulkhead_process::signals::{self, SignalFd};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use super::words;
use crate::command_line;
use crate::output::{Output, print};
use crate::shell::quote;
use crate::supervise::child;
use crate::verbs::Verb;

/// Change the current folder of the interactive shell
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Cd {
    /// The folder; without one, the home folder
    #[arg(value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

/// Print the current folder
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Pwd {}

/// Print the arguments, with one space between them
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Echo {
    /// Quote each for a shell
    #[arg(long)]
    shell: bool,
    /// Print to standard error
    #[arg(long)]
    err: bool,
    /// The arguments follow, as virsh writes it
    #[arg(long = "str", hide = true)]
    words_follow: bool,
    #[arg(value_name = "STRING")]
    words: Vec<OsString>,
}

/// Leave the interactive shell
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Quit {}

/// The error of a verb that is a shell's, anywhere else.
pub(crate) fn outside(verb: &str) -> anyhow::Result<ExitCode> {
    anyhow::bail!("{verb}: command valid only in interactive mode")
}

pub(crate) fn pwd(_: Pwd, output: Output) -> anyhow::Result<ExitCode> {
    let folder = std::env::current_dir().context("the current folder is gone, cd to another")?;
    output.show(&folder, |folder| format!("{}\n", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn echo(args: &Echo) -> anyhow::Result<ExitCode> {
    let words = args.words.iter().map(|word| match args.shell {
        true => quote(word),
        false => word.clone(),
    });
    let words: Vec<_> = words.collect();
    let mut line = words.join(" ".as_ref()).into_encoded_bytes();
    line.push(b'\n');
    match args.err {
        // Nobody may be there to read it.
        true => drop(std::io::Write::write_all(&mut std::io::stderr(), &line)),
        false => print(&line)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether there is a next command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Command,
    End,
}

/// What commands have in common.
pub(super) struct Session {
    /// Options of every command.
    options: Vec<OsString>,
    is_interactive: bool,
    /// Whether commands have this standard input.
    has_input: bool,
    has_run: bool,
    status: u8,
    /// Ctrl-C and Ctrl-\ are for the command that runs.
    _signals: SignalFd,
}

impl Session {
    pub(super) fn new(options: Vec<OsString>, is_interactive: bool) -> anyhow::Result<Self> {
        let signals = signals::block(&[libc::SIGINT, libc::SIGQUIT]);
        Ok(Self {
            options,
            is_interactive,
            has_input: true,
            has_run: false,
            status: 0,
            _signals: signals.context("cannot leave Ctrl-C to commands")?,
        })
    }

    /// Commands read nothing: standard input is where they come from.
    pub(super) fn without_input(self) -> Self {
        Self {
            has_input: false,
            ..self
        }
    }

    pub(super) fn has_run(&self) -> bool {
        self.has_run
    }

    /// The status of the last command.
    pub(super) fn status(&self) -> ExitCode {
        ExitCode::from(self.status)
    }

    /// Runs the commands of a line, or of several.
    pub(super) fn run(&mut self, line: &str) -> Next {
        let commands = match words::commands(line) {
            Ok(commands) => commands,
            Err(error) => {
                self.has_run = true;
                self.fail(&error.to_string());
                return Next::Command;
            }
        };
        for words in commands {
            self.has_run = true;
            if self.run_command(words) == Next::End {
                return Next::End;
            }
        }
        Next::Command
    }

    fn fail(&mut self, why: &str) {
        bulkhead_process::report(why);
        self.status = bulkhead_process::ERROR;
    }

    fn run_command(&mut self, words: Vec<String>) -> Next {
        let words = words.into_iter().map(OsString::from);
        let words: Vec<_> = self.options.iter().cloned().chain(words).collect();
        let name = OsString::from("bulkhead");
        // What is wrong is found without a process.
        match command_line::parse(std::iter::once(name).chain(words.iter().cloned())) {
            Err(status) => {
                self.status = u8::from(status != ExitCode::SUCCESS) * bulkhead_process::USAGE
            }
            Ok(args) => match args.verb {
                None => self.fail("which command? 'help' lists them"),
                Some(Verb::Quit(_) | Verb::Exit(_)) => return Next::End,
                Some(Verb::Cd(cd)) => self.change_folder(cd),
                Some(_) => self.spawn(&words),
            },
        }
        Next::Command
    }

    fn change_folder(&mut self, cd: Cd) {
        if !self.is_interactive {
            return self.fail("cd: command valid only in interactive mode");
        }
        let folder = cd
            .dir
            .or_else(|| std::env::home_dir().filter(|home| home.is_absolute()));
        let Some(folder) = folder else {
            return self.fail("cd: there is no home folder: name one");
        };
        match std::env::set_current_dir(&folder) {
            Ok(()) => self.status = 0,
            Err(error) => self.fail(&format!("cd: {}: {error}", folder.display())),
        }
    }

    fn spawn(&mut self, words: &[OsString]) {
        let own = std::env::current_exe().unwrap_or_else(|_| "bulkhead".into());
        let mut command = Command::new(own);
        command.args(words);
        if !self.has_input {
            command.stdin(Stdio::null());
        }
        // This process blocks Ctrl-C.
        child::block_nothing(&mut command);
        let terminal = Terminal::remember();
        let ended = command.status();
        terminal.restore();
        match ended {
            Ok(ended) => {
                if ended.signal() == Some(libc::SIGINT) {
                    // The terminal has written ^C, and nothing after it.
                    let _ = print(b"\n");
                }
                self.status = code(ended);
            }
            Err(error) => self.fail(&format!("cannot start bulkhead: {error}")),
        }
    }
}

/// The status, as a shell converts it.
fn code(ended: ExitStatus) -> u8 {
    let by_signal = || Some(ended.signal()? + 128);
    let code = ended.code().or_else(by_signal).unwrap_or(1);
    u8::try_from(code).unwrap_or(bulkhead_process::ERROR)
}

/// The settings of the terminal, which a command that is killed may leave changed.
struct Terminal(Option<Termios>);

impl Terminal {
    fn remember() -> Self {
        Self(tcgetattr(std::io::stdin()).ok())
    }

    fn restore(self) {
        if let Some(settings) = self.0 {
            // A terminal that is gone needs no settings.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &settings);
        }
    }
}
