//! References of an image to other files: names as recorded, and the paths they stand for.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// The other files an image names.
#[derive(Debug, Clone, Default)]
pub(crate) struct References {
    pub(crate) backing: Option<String>,
    pub(crate) backing_format: Option<String>,
    pub(crate) data_file: Option<String>,
}

/// Where the name of an external data file leads. Unlike backing files, QEMU looks for it relative to the
/// working directory, and so must everybody who shares images with it.
pub(crate) fn resolve_data_file(path: &Path, name: &str) -> Result<PathBuf> {
    resolve(path, name)?;
    Ok(PathBuf::from(name.strip_prefix("file:").unwrap_or(name)))
}

/// The full name behind one recorded in the image `path`, as QEMU shows it: those of a protocol are full already.
pub(crate) fn full_name(path: &Path, name: &str) -> Option<PathBuf> {
    let of_protocol = name
        .find([':', '/'])
        .is_some_and(|at| name.as_bytes().get(at) == Some(&b':'));
    match of_protocol {
        true => Some(PathBuf::from(name)),
        false => resolve(path, name).ok(),
    }
}

/// Where a name recorded in the image `path` leads: relative names are relative to the image's folder.
///
/// # Errors
/// The name is of a protocol (`nbd:`, `json:`, …): an image must not be able to make this process open such things.
pub(crate) fn resolve(path: &Path, name: &str) -> Result<PathBuf> {
    // What stands behind `file:` is a plain name, whatever it looks like.
    let (plain, local) = match name.strip_prefix("file:") {
        Some(rest) => (rest, true),
        None => (name, false),
    };
    let before_slash = plain.split('/').next().unwrap_or("");
    if before_slash.contains(':') && !local {
        return Err(Error::unsupported(format!(
            "{}: refers to {name}, which is not a plain file name",
            path.display()
        )));
    }
    if plain.is_empty() || plain.contains('\0') {
        return Err(Error::new(
            ErrorKind::Backing,
            format!("{}: refers to a file with an empty name", path.display()),
        ));
    }
    Ok(path.parent().unwrap_or_else(|| Path::new("")).join(plain))
}
