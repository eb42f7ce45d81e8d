//! Options about the file itself, which can have them only while it is empty: `nocow`, `extent_size_hint`.

use anyhow::{Result, anyhow};
use qcow::EmptyFile;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use super::FormatOptions;
use super::extent_size;
use crate::output::{reason, report};

/// QEMU's default.
const EXTENT_SIZE_HINT: u32 = 1 << 20;

/// What is done with each new file, by its options.
pub(crate) fn by_options(options: &FormatOptions) -> Result<EmptyFile> {
    let no_copy_on_write = options.boolean("nocow").unwrap_or(false);
    // All ones are as good as none.
    let given = options
        .number("extent_size_hint")
        .filter(|&hint| hint != u64::MAX);
    let given = given.map(u32::try_from).transpose();
    let given = given.map_err(|_| anyhow!("Extent size hint is too large"))?;
    Ok(empty_file(no_copy_on_write, given))
}

/// The same without any options.
pub(crate) fn by_default() -> EmptyFile {
    empty_file(false, None)
}

fn empty_file(no_copy_on_write: bool, hint: Option<u32>) -> EmptyFile {
    EmptyFile::new(move |file| {
        // Both make writes faster, and no more is lost without them.
        if no_copy_on_write && let Ok(flags) = ioctl_getflags(file) {
            let _ = ioctl_setflags(file, flags | IFlags::NOCOW);
        }
        let set = extent_size::set_hint(file, hint.unwrap_or(EXTENT_SIZE_HINT));
        if let (Err(error), Some(1..)) = (set, hint) {
            let why = reason::os(&error);
            report::warning(format_args!("Failed to set extent size hint: {why}"));
        }
    })
}
