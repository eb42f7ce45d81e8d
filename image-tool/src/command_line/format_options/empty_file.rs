//! Options that a file accepts only while it is empty: `nocow`, `extent_size_hint`.

use anyhow::{Result, anyhow};
use qcow::EmptyFile;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use super::FormatOptions;
use super::extent_size;
use crate::output::{errors, report};

/// QEMU's default.
const EXTENT_SIZE_HINT: u32 = 1 << 20;

/// What to do with each new, empty file, by the options.
pub(crate) fn by_options(options: &FormatOptions) -> Result<EmptyFile> {
    let no_copy_on_write = options.boolean("nocow").unwrap_or(false);
    // QEMU uses this value for "not set".
    let given = options
        .number("extent_size_hint")
        .filter(|&hint| hint != u64::MAX);
    let given = given.map(u32::try_from).transpose();
    let given = given.map_err(|_| anyhow!("Extent size hint is too large"))?;
    Ok(empty_file(no_copy_on_write, given))
}

/// The same without options.
pub(crate) fn by_default() -> EmptyFile {
    empty_file(false, None)
}

fn empty_file(no_copy_on_write: bool, hint: Option<u32>) -> EmptyFile {
    EmptyFile::new(move |file| {
        // Both only make writes faster, so errors are not fatal.
        if no_copy_on_write && let Ok(flags) = ioctl_getflags(file) {
            let _ = ioctl_setflags(file, flags | IFlags::NOCOW);
        }
        let set = extent_size::set_hint(file, hint.unwrap_or(EXTENT_SIZE_HINT));
        if let (Err(error), Some(1..)) = (set, hint) {
            let why = errors::describe_os(&error);
            report::warning(format_args!("Failed to set extent size hint: {why}"));
        }
    })
}
