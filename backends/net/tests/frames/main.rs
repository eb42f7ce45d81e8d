//! The device as a driver sees it: a vhost-user frontend with rings of its own on one side, a wire (TAP device, bridge,
//! TAP device) on the other. Each test has a network namespace of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod guest;
mod hostile;
mod queues;
mod receiving;
mod sending;
mod start;
mod wire;
