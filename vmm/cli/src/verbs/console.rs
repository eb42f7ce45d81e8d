//! `bulkhead console`: connects this terminal to the console of a guest, until Ctrl-] is pressed or the guest ends.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::Context;
use bulkhead_process::signals;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::ttyname;

use crate::domain::{Domain, DomainArg};
use crate::live;
use crate::output::Output;
use crate::supervise::control::Request;
use crate::terminal::Raw;

/// The key that leaves the console: Ctrl-].
const ESCAPE: u8 = 0x1d;

/// A guest whose console is wanted.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// Take the console from another client that has it
    #[arg(long)]
    force: bool,
    /// Connect only if two clients cannot have the console at once, which is always so here
    #[arg(long)]
    safe: bool,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    attach(&args.domain.find()?, args.force, output)
}

/// Connects this terminal to the guest's console.
pub(crate) fn attach(domain: &Domain, force: bool, output: Output) -> anyhow::Result<ExitCode> {
    let name = domain.name();
    domain.must_run()?;
    let terminal = ttyname(io::stdin(), Vec::new());
    let terminal = terminal.map(|name| name.to_string_lossy().into_owned());
    let request = Request::Console {
        force,
        terminal: format!(
            "process {} ({})",
            std::process::id(),
            terminal.unwrap_or("no terminal".to_owned())
        ),
    };
    let (guest, _) = live::connect(domain.base(), name, &request)
        .with_context(|| format!("Failed to connect to the console of domain '{name}'"))?;
    output.success(&format!("Connected to domain '{name}'"))?;
    output.success("Escape character is ^] (Ctrl + ])")?;
    let signals = signals::block_termination().context("cannot watch for signals")?;
    let raw = match io::stdin().is_terminal() {
        true => Some(Raw::enter().context("cannot set up the terminal")?),
        false => None,
    };
    let passed = pass_on(&guest, &signals);
    drop(raw);
    // The guest's last line may have no end.
    output.success("")?;
    passed.context("the console")?;
    Ok(ExitCode::SUCCESS)
}

fn pass_on(mut guest: &UnixStream, signals: &signals::SignalFd) -> io::Result<()> {
    let mut stdin_is_open = true;
    let mut bytes = [0; 4096];
    loop {
        let keys = match stdin_is_open {
            true => PollFlags::IN,
            false => PollFlags::empty(),
        };
        let stdin = io::stdin();
        let mut fds = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(guest, PollFlags::IN),
            PollFd::new(&stdin, keys),
        ];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let [signal, output, input] = fds.map(|fd| !fd.revents().is_empty());
        if signal {
            return Ok(());
        }
        if output {
            let length = match guest.read(&mut bytes) {
                Ok(0) => return Ok(()),
                // Another client has taken the console.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                read => read?,
            };
            let mut out = io::stdout().lock();
            out.write_all(bytes.get(..length).unwrap_or_default())?;
            out.flush()?;
        }
        if input && stdin_is_open {
            let length = rustix::io::read(io::stdin(), &mut bytes)?;
            let keys = bytes.get(..length).unwrap_or_default();
            let escape = keys.iter().position(|key| *key == ESCAPE);
            let keys = keys.get(..escape.unwrap_or(length)).unwrap_or_default();
            // A guest that has just ended is seen by the next read.
            let _ = guest.write_all(keys);
            if escape.is_some() {
                return Ok(());
            }
            stdin_is_open = length > 0;
        }
    }
}
