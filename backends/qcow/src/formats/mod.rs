//! The image formats: one folder each.

pub(crate) mod qcow2;
pub(crate) mod raw;
