//! `bulkhead-process`: what every Bulkhead program does to itself, from its start to its confinement.
//!
//! * [`main`]: parses the command line, and turns an error into one `error:` line and an exit status;
//! * [`warn`], [`say`] and [`report`]: lines on standard error that never keep the program waiting;
//! * [`listen`]: listening Unix sockets;
//! * [`broker`]: a child that connects to sockets and removes files for a confined program;
//! * [`notify`]: notifies a service manager of readiness;
//! * [`signals`]: SIGTERM, SIGINT and SIGHUP as a descriptor to poll;
//! * [`confine`]: no_new_privs, capabilities, Landlock and seccomp.
//!
//! It may touch its own process only, and depends on no other part of Bulkhead.

pub mod broker;
pub mod confine;
mod exit;
pub mod listen;
pub mod notify;
pub mod signals;
mod stderr;
mod warn;

pub use exit::{
    ERROR, USAGE, UsageError, first_paragraph, main, main_with, parse, report, status, usage,
};
pub use warn::{say, warn};
