//! The terminal the monitor runs on.

use std::os::fd::OwnedFd;

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr,
};

/// A terminal out of line mode, which is put back when this is dropped.
pub(super) struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// `None` when it is no terminal, or not this process's to change.
    pub(super) fn new(terminal: &OwnedFd) -> Option<Self> {
        if !isatty(terminal) || tcgetpgrp(terminal).ok()? != rustix::process::getpgrp() {
            return None;
        }
        let before = tcgetattr(terminal).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.local_modes |= LocalModes::ISIG;
        // Ctrl-Z and Ctrl-\ are the guest's.
        raw.special_codes[SpecialCodeIndex::VSUSP] = 0;
        raw.special_codes[SpecialCodeIndex::VQUIT] = 0;
        let terminal = terminal.try_clone().ok()?;
        tcsetattr(&terminal, OptionalActions::Now, &raw).ok()?;
        Some(Self { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that has gone away needs no restoring.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}
