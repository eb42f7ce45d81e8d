//! What is on the medium: the header, its extensions and feature bits, L1 and L2 entries, the snapshot table and the
//! bitmap directory, as the specification (docs/interop/qcow2.rst of QEMU) has them. Parsing, encoding and limits;
//! which tables are read or written, and when, is decided elsewhere.

pub(crate) mod address;
pub(crate) mod big_endian;
pub(crate) mod bitmap;
pub(crate) mod extension;
pub(crate) mod feature;
pub(crate) mod geometry;
pub(crate) mod header;
pub(crate) mod l2;
pub(crate) mod luks;
pub(crate) mod refcount;
pub(crate) mod snapshot_table;
pub(crate) mod table;
