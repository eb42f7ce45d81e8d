//! The guest's console on this terminal: keys go to the guest one by one, but Ctrl-C still ends the run.

use std::io::{self, IsTerminal, Read, Write};
use std::process::ChildStdin;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::termios::{
    LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};

/// Where the keys go: the monitor of the moment.
pub(crate) type Input = Arc<Mutex<Option<ChildStdin>>>;

/// The terminal, until it is dropped.
pub(crate) struct Console {
    input: Input,
    before: Option<Termios>,
}

impl Console {
    /// Begins to pass standard input on, and sets the terminal up for it if it is one.
    pub(crate) fn attach() -> io::Result<Self> {
        let before = if io::stdin().is_terminal() {
            let before = tcgetattr(io::stdin())?;
            let mut raw = before.clone();
            raw.make_raw();
            // Ctrl-C still means stop, and lines still begin at the left.
            raw.local_modes |= LocalModes::ISIG;
            raw.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
            raw.special_codes[SpecialCodeIndex::VSUSP] = 0;
            raw.special_codes[SpecialCodeIndex::VQUIT] = 0;
            tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
            Some(before)
        } else {
            None
        };
        let input = Input::default();
        let target = input.clone();
        // It ends with the process: a read of a terminal cannot be called off.
        std::thread::Builder::new()
            .name("console".into())
            .spawn(move || pass_on(&target))?;
        Ok(Self { input, before })
    }

    pub(crate) fn input(&self) -> Input {
        self.input.clone()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // The terminal may be gone; there is nobody to tell.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
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
