//! The command line: qemu-img's options and operands, as getopt takes them, turned into values.

pub(crate) mod cache;
pub(crate) mod format_options;
pub(crate) mod getopt;
pub(crate) mod keyval;
pub(crate) mod manual;
pub(crate) mod object;
pub(crate) mod options;
pub(crate) mod size;
pub(crate) mod source;
