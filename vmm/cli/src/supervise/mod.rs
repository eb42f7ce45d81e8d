//! The supervisor of one guest: starts its processes, those that do not depend on each other in parallel, starts a
//! backend that dies again, ends all in order, and serves the guest's `control.sock`.
//!
//! In the foreground (`bulkhead run`) the guest ends with it. In the background it may be killed at any time: the guest
//! goes on, and the next `bulkhead` command starts another supervisor, which adopts the processes.

pub(crate) mod api;
mod background;
pub(crate) mod child;
mod console;
pub(crate) mod control;
mod ending;
mod event;
mod helper;
mod messages;
mod proc;
mod ready;
mod restarts;
mod signals;
pub(crate) mod state;
mod supervisor;

pub(crate) use background::{VERB, adopt, main, respond, start};
pub(crate) use child::{FIFO, Ground};
pub(crate) use ending::Ending;
pub(crate) use helper::{missing, runs};
pub(crate) use messages::Messages;
pub(crate) use signals::Signals;
pub(crate) use supervisor::{Outcome, Setting, Supervisor};
