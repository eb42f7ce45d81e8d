//! An image as the command line describes it, before a file is opened.

mod node;
pub(crate) mod operand;
mod tuning;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::output::json::Value;

/// The file of an image, and how to open it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The name on the command line, for messages.
    pub(crate) text: String,
    /// The image's file.
    pub(crate) path: PathBuf,
    /// The format, if it was given.
    pub(crate) format: Option<String>,
    /// Replaces the backing file that the image records.
    pub(crate) backing: BackingOverride,
    /// Replaces the external data file that the image records.
    pub(crate) data_file: Option<PathBuf>,
    /// `force-share=on`.
    pub(crate) force_share: bool,
    pub(crate) locks: Locks,
    /// `cache.direct=on`: sizes are whole sectors.
    pub(crate) direct: bool,
    /// It is a `file` node without a format node.
    pub(crate) is_protocol: bool,
    /// The image that is the `file` node instead of a file.
    pub(crate) file_node: Option<Box<Source>>,
    /// The `raw` nodes with offset or size between the file and the image, the file's first.
    pub(crate) windows: Vec<Window>,
    /// The node tree that is printed if the path does not describe the image.
    pub(crate) shown: Option<Value>,
}

/// The backing file, by the options.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum BackingOverride {
    /// The one that the image records.
    #[default]
    AsRecorded,
    /// None.
    None,
    /// Another one.
    Image(Box<Source>),
}

/// `locking=` of a file node: whether the file is locked against other processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Locks {
    /// If the host supports it.
    #[default]
    Auto,
    On,
    Off,
}

/// A part of a file: raw's `offset` and `size`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) offset: u64,
    /// To the end, if absent.
    pub(crate) size: Option<u64>,
    /// The node tree that is printed.
    pub(crate) shown: Value,
}

impl Source {
    /// The image in a file, without other options.
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
            file_node: None,
            windows: Vec::new(),
            shown: None,
        }
    }

    /// The image whose `file` node is another image.
    pub(crate) fn within(file_node: Self) -> Self {
        Self {
            text: file_node.text.clone(),
            force_share: file_node.force_share,
            file_node: Some(Box::new(file_node.clone())),
            ..Self::of_file(file_node.path, None)
        }
    }

    /// The name that is printed: the path, or the node tree if the path does not describe the image.
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

/// The path of a name, without its protocol, which can only be `file:`.
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
    // The rest must not be taken for a name with a protocol.
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

/// The path of a file that an image names: relative names are relative to the image's folder.
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
