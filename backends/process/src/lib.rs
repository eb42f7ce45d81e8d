//! `bulkhead-process`: what every Bulkhead program does to itself.
//!
//! * [`main`]: command line in, one `error:` line and an exit status out;
//! * [`notify`]: readiness, told as a service manager wants it;
//! * [`signals`]: SIGTERM and SIGINT as something to poll;
//! * [`confine`]: no_new_privs, capabilities, Landlock and seccomp.
//!
//! It may touch its own process only, and depends on no other part of Bulkhead.

pub mod confine;
mod exit;
pub mod notify;
pub mod signals;

pub use exit::{ERROR, USAGE, UsageError, main, parse, usage};
