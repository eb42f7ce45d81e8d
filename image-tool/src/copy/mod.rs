//! Copying the content of disks: what to copy, in which pieces, by how many threads.

pub(crate) mod buffer;
mod engine;
mod input;
mod offload;
mod plan;
mod ready;
mod salvage;
pub(crate) mod workers;
mod writeback;
pub(crate) mod zero;

pub(crate) use engine::{Copy, Failure, run};
pub(crate) use input::Input;
pub(crate) use plan::{Kind, Plan};
pub(crate) use ready::Order;
pub(crate) use salvage::Salvage;
