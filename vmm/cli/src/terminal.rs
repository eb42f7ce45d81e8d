//! The guest's console on this terminal: keys go to the guest one by one, and Ctrl-C still ends the run.

use std::io::{self, IsTerminal, Read, Write};
use std::process::ChildStdin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_process::signals::{self, SignalFd};
use rustix::process::getpgrp;
use rustix::termios::{
    LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp,
    tcsetattr,
};

/// Where keys go: the standard input of the monitor that runs now.
pub(crate) type Input = Arc<Mutex<Option<ChildStdin>>>;

/// A terminal that is set up for a guest.
#[derive(Clone)]
pub(crate) struct Terminal {
    before: Termios,
    raw: Termios,
}

impl Terminal {
    fn of_stdin() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        // Ctrl-C still sends SIGINT, and output still returns to the first column at each new line.
        raw.local_modes |= LocalModes::ISIG;
        raw.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
        raw.special_codes[SpecialCodeIndex::VSUSP] = 0;
        raw.special_codes[SpecialCodeIndex::VQUIT] = 0;
        // The monitor, which is in a process group of its own, writes to the terminal.
        raw.local_modes &= !LocalModes::TOSTOP;
        Ok(Some(Self { before, raw }))
    }

    /// Sets the terminal up for the guest, unless another job has it.
    pub(crate) fn set_up(&self) {
        self.set(&self.raw);
    }

    /// Restores the terminal's settings, unless another job has it.
    pub(crate) fn give_back(&self) {
        self.set(&self.before);
    }

    fn set(&self, modes: &Termios) {
        // A background job that sets a terminal is stopped by SIGTTOU.
        if has_terminal() {
            // It fails when the terminal is gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, modes);
        }
    }
}

/// The terminal in raw mode, in which every key is a byte of input, until it is dropped.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    pub(crate) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // It fails when the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Whether this is the foreground job of its terminal.
fn has_terminal() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp())
}

/// Whether another job has the terminal.
fn is_background() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|group| group != getpgrp())
}

/// The console, until it is dropped.
pub(crate) struct Console {
    input: Input,
    terminal: Option<Terminal>,
}

impl Console {
    /// Begins to pass on standard input. A terminal is set up for the guest: now, or when this job comes to the
    /// foreground.
    pub(crate) fn attach() -> io::Result<Self> {
        let terminal = Terminal::of_stdin()?;
        if let Some(terminal) = &terminal {
            terminal.set_up();
        }
        let input = Input::default();
        let target = input.clone();
        // The thread ends with the process, since a read of a terminal cannot be cancelled.
        std::thread::Builder::new()
            .name("console".into())
            .spawn(move || pass_on(&target))?;
        Ok(Self { input, terminal })
    }

    pub(crate) fn input(&self) -> Input {
        self.input.clone()
    }

    pub(crate) fn terminal(&self) -> Option<Terminal> {
        self.terminal.clone()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(terminal) = &self.terminal {
            terminal.give_back();
        }
    }
}

/// How long the terminal is left to another job before it is read again.
const PAUSE: Duration = Duration::from_millis(200);

fn pass_on(target: &Input) {
    // With SIGTTIN blocked, a read in the background fails. Otherwise the signal would stop the whole process,
    // supervisor included.
    let blocked: io::Result<SignalFd> = signals::block(&[libc::SIGTTIN]);
    let Ok(_blocked) = blocked else { return };
    let mut keys = [0; 4096];
    let mut stdin = io::stdin().lock();
    loop {
        let length = match stdin.read(&mut keys) {
            Err(error) if error.raw_os_error() == Some(libc::EIO) && is_background() => {
                std::thread::sleep(PAUSE);
                continue;
            }
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        let mut monitor = target.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(pipe), Some(read)) = (monitor.as_mut(), keys.get(..length)) {
            // It fails when the monitor has ended.
            let _ = pipe.write_all(read).and_then(|()| pipe.flush());
        }
    }
}
