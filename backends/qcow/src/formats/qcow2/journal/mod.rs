//! The journal: a file with the changes of tables that are not in the image yet. If the process is killed, the next one
//! that opens the image reads it.
//!
//! [`log`] decides what is recorded, [`writer`] writes it and [`reader`] reads it back. [`mod@file`] is the file beside
//! the image, and [`place`] finds it. [`session`] and [`progress`] are what the image itself records of its journal:
//! which one it is, and how many groups of records it has.

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
