//! The journal: changes of tables that are not in the image yet, recorded where the process after a kill finds them.
//!
//! [`log`] decides what is recorded, [`writer`] writes it and [`reader`] reads it back; [`mod@file`] is the file beside
//! the image, which [`place`] finds; [`session`] is what the image's header says of it, and [`progress`] how far the
//! image says it has got.

pub(crate) mod file;
pub(crate) mod log;
mod place;
pub(crate) mod progress;
pub(crate) mod reader;
pub(crate) mod session;
pub(crate) mod writer;

pub(crate) use log::{Freed, Journal};
pub(crate) use reader::JournalContents;
pub(crate) use writer::JournalWriter;
