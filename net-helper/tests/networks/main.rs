//! The helper on a real kernel, with the real dnsmasq, nft and DHCP client. Each test has a network namespace of its
//! own for the host, and more of them for guests and the world outside.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod above;
mod adoption;
mod bridge_helper;
mod closed;
mod deaths;
mod disguised;
mod fairness;
mod flood;
mod gateways;
mod guests;
mod host;
mod leases;
mod limits;
mod previous_run;
mod refusals;
mod scene;
#[path = "../../../backends/process/tests/stopped/mod.rs"]
#[allow(dead_code)]
mod stopped;
