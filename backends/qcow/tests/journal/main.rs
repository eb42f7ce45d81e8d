//! The journal of a qcow2 image: what the process after a kill finds, and what it does not believe.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod copies;
mod damage;
mod files;
mod kills;

#[path = "../peer/mod.rs"]
mod peer;
