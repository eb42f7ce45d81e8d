//! One process of a guest: a program and its arguments.

use std::ffi::{OsStr, OsString};

use crate::program::Program;
use crate::shell;

/// What a process does for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Serves the networks of all guests. It is not this guest's alone: it stays as long as any guest needs it.
    Helper,
    /// Serves a device. It ends when the monitor does, and is started again when it ends before.
    Backend,
    /// Runs the guest.
    Monitor,
}

/// A process that is to be started.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// Its name in messages: `vmm`, `vda`, `net0`, `net-helper`.
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) program: Program,
    pub(crate) args: Vec<OsString>,
    /// The processes, by index, that must be ready before it is started.
    pub(crate) after: Vec<usize>,
    /// Whether the network helper must serve before it is started.
    pub(crate) needs_helper: bool,
}

impl Process {
    pub(super) fn new(name: impl Into<String>, role: Role, program: &Program) -> Self {
        Self {
            name: name.into(),
            role,
            program: program.clone(),
            args: Vec::new(),
            after: Vec::new(),
            needs_helper: false,
        }
    }

    pub(super) fn flag(mut self, flag: &str) -> Self {
        self.args.push(flag.into());
        self
    }

    pub(super) fn option(mut self, option: &str, value: impl Into<OsString>) -> Self {
        self.args.push(option.into());
        self.args.push(value.into());
        self
    }

    /// The command line that starts it from a shell.
    pub(crate) fn command(&self) -> OsString {
        let mut words = vec![self.program.shown.clone()];
        words.extend(self.args.iter().map(|word| shell::quote(word)));
        words.join(OsStr::new(" "))
    }
}
