//! The guest's console on this terminal: keys go to the guest one by one, but Ctrl-C still ends the run.

use std::io::{self, IsTerminal, Read, Write};
use std::process::ChildStdin;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::getpgrp;
use rustix::termios::{
    LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp,
    tcsetattr,
};

/// Where the keys go: the monitor of the moment.
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
        // Ctrl-C still means stop, and lines still begin at the left.
        raw.local_modes |= LocalModes::ISIG;
        raw.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
        raw.special_codes[SpecialCodeIndex::VSUSP] = 0;
        raw.special_codes[SpecialCodeIndex::VQUIT] = 0;
        // The monitor writes to it, and is in a group of its own.
        raw.local_modes &= !LocalModes::TOSTOP;
        Ok(Some(Self { before, raw }))
    }

    /// Keys come one by one from now on. Nothing while another job has the terminal.
    pub(crate) fn set_up(&self) {
        self.set(&self.raw);
    }

    /// As it was before.
    pub(crate) fn give_back(&self) {
        self.set(&self.before);
    }

    fn set(&self, modes: &Termios) {
        // Who is in the background and sets a terminal is stopped.
        if tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp()) {
            // The terminal may be gone; there is nobody to tell.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, modes);
        }
    }
}

/// The console, until it is dropped.
pub(crate) struct Console {
    input: Input,
    terminal: Option<Terminal>,
}

impl Console {
    /// Begins to pass standard input on, and sets the terminal up for it if it is one.
    pub(crate) fn attach() -> io::Result<Self> {
        let terminal = Terminal::of_stdin()?;
        if let Some(terminal) = &terminal {
            // In the background this stops us, until we are brought to the foreground.
            tcsetattr(io::stdin(), OptionalActions::Now, &terminal.raw)?;
        }
        let input = Input::default();
        let target = input.clone();
        // It ends with the process: a read of a terminal cannot be called off.
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

fn pass_on(target: &Input) {
    let mut keys = [0; 4096];
    let mut stdin = io::stdin().lock();
    loop {
        let length = match stdin.read(&mut keys) {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        let mut monitor = target.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(pipe), Some(read)) = (monitor.as_mut(), keys.get(..length)) {
            // A monitor that has ended reads no more.
            let _ = pipe.write_all(read).and_then(|()| pipe.flush());
        }
    }
}
