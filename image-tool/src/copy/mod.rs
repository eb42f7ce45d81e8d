//! Copying disks: the plan of pieces, and the threads that read and write them.

pub(crate) mod buffer;
mod engine;
mod failure;
mod input;
mod offload;
mod plan;

mod salvage;
pub(crate) mod workers;
mod write_queue;
mod writeback;
pub(crate) mod zero;

pub(crate) use engine::{Copy, run};
pub(crate) use failure::Failure;
pub(crate) use input::Input;
pub(crate) use plan::{Kind, Plan};
pub(crate) use salvage::Salvage;
pub(crate) use write_queue::Order;
