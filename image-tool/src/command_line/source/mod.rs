//! An image as the user described it, before any file is opened.

mod node;
pub(crate) mod operand;
mod tuning;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::output::json::Value;

/// Where an image is and how it is to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// As written, for messages.
    pub(crate) text: String,
    /// The image's file.
    pub(crate) path: PathBuf,
    /// The format, when it was given.
    pub(crate) format: Option<String>,
    /// What to use instead of the backing file the image names.
    pub(crate) backing: BackingOverride,
    /// What to use instead of the external data file the image names.
    pub(crate) data_file: Option<PathBuf>,
    /// `force-share=on` among the options.
    pub(crate) force_share: bool,
    pub(crate) locks: Locks,
    /// `cache.direct=on` among the options: there are no parts of sectors.
    pub(crate) direct: bool,
    /// It is the file itself, without a format above it.
    pub(crate) is_protocol: bool,
    /// The image whose disk takes the place of the file.
    pub(crate) under: Option<Box<Source>>,
    /// The parts of the file that the image lies in, from the file upwards.
    pub(crate) windows: Vec<Window>,
    /// How the image is shown when its path does not say all.
    pub(crate) shown: Option<Value>,
}

/// What the options say about the backing file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum BackingOverride {
    /// Nothing: the image's own record counts.
    #[default]
    AsRecorded,
    /// There is none.
    None,
    /// This one.
    Image(Box<Source>),
}

/// Whether the image's file is locked against other processes: `locking=` of a file node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Locks {
    /// As far as the host can.
    #[default]
    Auto,
    On,
    Off,
}

/// A part of a file in the place of a file: raw's `offset` and `size`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) offset: u64,
    /// Up to the end of what it is a part of, if absent.
    pub(crate) size: Option<u64>,
    /// The node, as it is shown.
    pub(crate) shown: Value,
}

impl Source {
    /// The image in a file, as it is.
    pub(crate) fn of_file(path: PathBuf, format: Option<String>) -> Self {
        Self {
            text: path.to_string_lossy().into_owned(),
            path,
            format,
            backing: BackingOverride::AsRecorded,
            data_file: None,
            force_share: false,
            locks: Locks::Auto,
            direct: false,
            is_protocol: false,
            under: None,
            windows: Vec::new(),
            shown: None,
        }
    }

    /// The image that lies in another one.
    pub(crate) fn within(under: Self) -> Self {
        Self {
            text: under.text.clone(),
            force_share: under.force_share,
            under: Some(Box::new(under.clone())),
            ..Self::of_file(under.path, None)
        }
    }

    /// How the image is shown: its path, unless that does not say all.
    pub(crate) fn shown(&self, format: &str) -> String {
        match &self.shown {
            Some(Value::Object(tree)) => {
                let known = tree.in_order().iter().any(|(name, _)| *name == "driver");
                let tree = tree.clone();
                let tree = tree.with_some("driver", (!known).then_some(format));
                format!("json:{}", Value::from(tree).compact())
            }
            _ => self.path.to_string_lossy().into_owned(),
        }
    }
}

/// The path behind a name that may begin with a protocol, which can only be `file:`.
pub(crate) fn local_path(name: &OsStr) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = name.as_bytes();
    let before_slash = bytes.split(|&b| b == b'/').next().unwrap_or_default();
    let Some(colon) = before_slash.iter().position(|&b| b == b':') else {
        return Ok(PathBuf::from(name));
    };
    let (protocol, rest) = bytes.split_at(colon);
    if protocol != b"file" {
        bail!("Unknown protocol '{}'", String::from_utf8_lossy(protocol));
    }
    let path = PathBuf::from(OsStr::from_bytes(rest.get(1..).unwrap_or_default()));
    // What is left must not look as if it had a protocol, either.
    match has_protocol(&path.to_string_lossy()) {
        true => Ok(Path::new(".").join(path)),
        false => Ok(path),
    }
}

/// Whether a name begins with a protocol.
pub(crate) fn has_protocol(name: &str) -> bool {
    name.find([':', '/'])
        .is_some_and(|at| name.as_bytes().get(at) == Some(&b':'))
}

/// Where a file named by an image lies: relative names are relative to the image.
pub(crate) fn relative_to(image: &Path, name: &str) -> Result<PathBuf> {
    let path = local_path(OsStr::new(name))?;
    if path.is_absolute() {
        return Ok(path);
    }
    let folder = image
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    Ok(folder.map_or(path.clone(), |folder| folder.join(&path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_an_image_are_relative_to_it() {
        assert_eq!(
            relative_to(Path::new("sub/o"), "./b").unwrap(),
            Path::new("sub/./b")
        );
        assert_eq!(relative_to(Path::new("o"), "b").unwrap(), Path::new("b"));
        assert_eq!(
            relative_to(Path::new("sub/o"), "/b").unwrap(),
            Path::new("/b")
        );
    }
}
