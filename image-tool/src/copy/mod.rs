//! Copying the content of disks: what to copy, in which pieces, by how many threads.

mod engine;
mod input;
mod offload;
mod plan;
mod ready;
mod writeback;
pub(crate) mod zero;

pub(crate) use engine::{Copy, Failure, Salvage, run};
pub(crate) use input::Input;
pub(crate) use plan::{Kind, Plan};
pub(crate) use ready::Order;
