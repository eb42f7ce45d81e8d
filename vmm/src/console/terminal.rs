//! The terminal that the serial port is on.

use std::os::fd::OwnedFd;

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr,
};

/// A terminal in raw mode. Dropping this restores its settings.
pub(super) struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Returns `None` when it is not a terminal, or another job has it.
    pub(super) fn new(terminal: &OwnedFd) -> Option<Self> {
        if !isatty(terminal) || tcgetpgrp(terminal).ok()? != rustix::process::getpgrp() {
            return None;
        }
        let before = tcgetattr(terminal).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.local_modes |= LocalModes::ISIG;
        // Ctrl-Z and Ctrl-\ go to the guest.
        raw.special_codes[SpecialCodeIndex::VSUSP] = 0;
        raw.special_codes[SpecialCodeIndex::VQUIT] = 0;
        let terminal = terminal.try_clone().ok()?;
        tcsetattr(&terminal, OptionalActions::Now, &raw).ok()?;
        Some(Self { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // It fails when the terminal is gone.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}
