//! Definitions of guests, and the verbs on them: the program itself, with an /etc or a home of the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod editing;
mod host;
mod safe;
mod users;
mod verbs;
