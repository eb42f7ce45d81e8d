//! `bulkhead-block` under test, and a guest that uses it.

#![allow(dead_code, missing_docs, unreachable_pub, unused_imports)]

pub mod backend;
pub mod guest;
pub mod killed;

pub use backend::{Backend, program, raw_image};
pub use bulkhead_test_frontend::program::wait;
pub use bulkhead_test_frontend::{
    Buffer, EVENT_IDX, PATIENCE, PROTOCOL_FEATURES, VERSION_1, readable,
};
pub use guest::{FLUSH, Guest, MEMORY, RING_SIZE};
