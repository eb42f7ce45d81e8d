//! `bulkhead-process`: what every Bulkhead program does to itself.
//!
//! * [`main`]: command line in, one `error:` line and an exit status out;
//! * [`warn`], [`say`] and [`report`]: lines on standard error that never keep the program waiting;
//! * [`listen`]: Unix sockets to be connected to;
//! * [`broker`]: a child that connects and removes files for a program that may no longer do so;
//! * [`notify`]: readiness, told as a service manager wants it;
//! * [`signals`]: SIGTERM and SIGINT as something to poll;
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

pub use exit::{ERROR, USAGE, UsageError, main, parse, report, usage};
pub use warn::{say, warn};
