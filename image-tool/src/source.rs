//! What names an image on the command line: a file name, `file:name`, `json:{…}`, or with `--image-opts` a list of
//! options. Only local files, and only the formats this tool knows; everything else is refused by name.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};

use crate::keyval;

/// An image as the user described it, before any file is opened.
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

/// Options of nodes that tune and do not change what is read or written.
const TUNING: [&str; 20] = [
    "node-name",
    "read-only",
    "auto-read-only",
    "discard",
    "detect-zeroes",
    "cache.direct",
    "cache.no-flush",
    "lazy-refcounts",
    "pass-discard-request",
    "pass-discard-snapshot",
    "pass-discard-other",
    "discard-no-unref",
    "overlap-check",
    "cache-size",
    "l2-cache-size",
    "l2-cache-entry-size",
    "refcount-cache-size",
    "cache-clean-interval",
    "locking",
    "aio",
];

impl Source {
    /// From an operand: a file name, or with `image_opts` a list of options.
    pub(crate) fn parse(operand: &OsStr, format: Option<&str>, image_opts: bool) -> Result<Self> {
        if image_opts {
            if format.is_some() {
                bail!("--image-opts and --format are mutually exclusive");
            }
            return Self::from_options(&operand.to_string_lossy());
        }
        Self::from_name(operand, format)
    }

    /// From a file name, which may have a protocol in front.
    pub(crate) fn from_name(name: &OsStr, format: Option<&str>) -> Result<Self> {
        let text = name.to_string_lossy().into_owned();
        if let Some(json) = text.strip_prefix("json:") {
            return Self::from_json(&text, json, format);
        }
        let path = local_path(name).map_err(|error| anyhow!("Could not open '{text}': {error}"))?;
        if path.as_os_str().is_empty() {
            bail!("Could not open '{text}': The 'file' block driver requires a file name");
        }
        Ok(Self {
            text,
            path,
            format: format.map(str::to_owned),
            backing: BackingOverride::AsRecorded,
            data_file: None,
            force_share: false,
        })
    }

    fn from_options(text: &str) -> Result<Self> {
        let options = keyval::split(text, Some("file"))
            .into_iter()
            .map(|item| (item.key, item.value.unwrap_or_else(|| "on".to_owned())))
            .collect();
        Self::from_flat(text, options).map_err(|error| anyhow!("Could not open '{text}': {error}"))
    }

    fn from_json(text: &str, json: &str, format: Option<&str>) -> Result<Self> {
        let failed = |error: String| anyhow!("Could not open '{text}': {error}");
        let value: serde_json::Value =
            serde_json::from_str(&double_quoted(json)).map_err(|error| {
                failed(format!(
                    "Could not parse the JSON options: JSON parse error, {error}"
                ))
            })?;
        let serde_json::Value::Object(members) = value else {
            return Err(failed("Invalid JSON object given".to_owned()));
        };
        let mut options = Vec::new();
        flatten("", &members, &mut options).map_err(failed)?;
        if let Some(format) = format {
            options.retain(|(key, _)| key != "driver");
            options.push(("driver".to_owned(), format.to_owned()));
        }
        Self::from_flat(text, options).map_err(|error| failed(error.to_string()))
    }

    /// From options whose keys are paths: `file.filename`, `backing.driver`.
    fn from_flat(text: &str, options: Vec<(String, String)>) -> Result<Self> {
        let mut node = Node::default();
        for (key, value) in options {
            node.set(&key, value)?;
        }
        node.into_source(text)
    }
}

/// Options of one image while they are collected.
#[derive(Debug, Default)]
struct Node {
    driver: Option<String>,
    filename: Option<String>,
    file_driver: Option<String>,
    backing: Vec<(String, String)>,
    no_backing: bool,
    data_file: Option<String>,
    force_share: bool,
}

impl Node {
    fn set(&mut self, key: &str, value: String) -> Result<()> {
        let tuning = key.strip_prefix("file.").unwrap_or(key);
        match key {
            "driver" => self.driver = Some(value),
            "filename" | "file.filename" => self.filename = Some(value),
            "file.driver" => self.file_driver = Some(value),
            "file" => bail!("Cannot find device='{value}' nor node-name='{value}'"),
            "force-share" => {
                self.force_share = keyval::boolean(&value)
                    .ok_or_else(|| anyhow!("Parameter 'force-share' expects 'on' or 'off'"))?;
            }
            "backing" if value.is_empty() => self.no_backing = true,
            "backing" => bail!("Cannot find device='{value}' nor node-name='{value}'"),
            "data-file.filename" | "data-file.file.filename" => self.data_file = Some(value),
            "data-file.driver" | "data-file.file.driver"
                if matches!(value.as_str(), "file" | "raw") => {}
            _ if TUNING.contains(&tuning) => {}
            _ => match key.strip_prefix("backing.") {
                Some(inner) => self.backing.push((inner.to_owned(), value)),
                None => {
                    let driver = self.driver.as_deref().unwrap_or("file");
                    bail!("Block format '{driver}' does not support the option '{key}'");
                }
            },
        }
        Ok(())
    }

    fn into_source(self, text: &str) -> Result<Source> {
        if let Some(driver) = self
            .file_driver
            .as_deref()
            .filter(|driver| !is_file_driver(driver))
        {
            bail!("Unknown driver '{driver}'");
        }
        let filename = self
            .filename
            .ok_or_else(|| anyhow!("A block device must be specified for \"file\""))?;
        // On a `file` node the file is the disk.
        let format = match self.driver.as_deref() {
            Some(driver) if is_file_driver(driver) => Some("raw".to_owned()),
            other => other.map(str::to_owned),
        };
        let backing = match (self.no_backing, self.backing.is_empty()) {
            (true, _) => BackingOverride::None,
            (false, true) => BackingOverride::AsRecorded,
            (false, false) => {
                BackingOverride::Image(Box::new(Source::from_flat(text, self.backing)?))
            }
        };
        Ok(Source {
            text: text.to_owned(),
            path: PathBuf::from(filename),
            format,
            backing,
            data_file: self.data_file.map(PathBuf::from),
            force_share: self.force_share,
        })
    }
}

fn is_file_driver(driver: &str) -> bool {
    matches!(driver, "file" | "host_device")
}

/// QEMU takes strings in single quotes, too; the parser wants double ones.
fn double_quoted(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut quote = None;
    let mut characters = json.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(_), '\\') => match characters.next() {
                Some('\'') => out.push('\''),
                Some(escaped) => out.extend(['\\', escaped]),
                None => out.push('\\'),
            },
            (None, '\'' | '"') => {
                quote = Some(character);
                out.push('"');
            }
            (Some(open), _) if open == character => {
                quote = None;
                out.push('"');
            }
            (Some('\''), '"') => out.push_str("\\\""),
            _ => out.push(character),
        }
    }
    out
}

/// Turns nested JSON into options whose keys are paths.
fn flatten(
    prefix: &str,
    members: &serde_json::Map<String, serde_json::Value>,
    options: &mut Vec<(String, String)>,
) -> Result<(), String> {
    use serde_json::Value;
    for (name, value) in members {
        let key = format!("{prefix}{name}");
        match value {
            Value::Object(inner) => flatten(&format!("{key}."), inner, options)?,
            Value::String(text) => options.push((key, text.clone())),
            Value::Bool(value) => options.push((key, if *value { "on" } else { "off" }.to_owned())),
            Value::Number(number) => options.push((key, number.to_string())),
            Value::Null => options.push((key, String::new())),
            Value::Array(_) => return Err(format!("Parameter '{key}' is unexpected")),
        }
    }
    Ok(())
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
    Ok(PathBuf::from(OsStr::from_bytes(
        rest.get(1..).unwrap_or_default(),
    )))
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

    fn named(name: &str) -> Result<Source> {
        Source::from_name(OsStr::new(name), None)
    }

    #[test]
    fn only_the_file_protocol_is_known() {
        assert_eq!(named("file:a.raw").unwrap().path, Path::new("a.raw"));
        assert_eq!(named("./a:b").unwrap().path, Path::new("./a:b"));
        let error = named("nbd://localhost").unwrap_err().to_string();
        assert_eq!(
            error,
            "Could not open 'nbd://localhost': Unknown protocol 'nbd'"
        );
    }

    #[test]
    fn json_and_options_say_the_same() {
        let json = named(
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"b"},"force-share":true}"#,
        );
        let options =
            Source::from_options("driver=qcow2,file.driver=file,file.filename=b,force-share=on");
        let (json, options) = (json.unwrap(), options.unwrap());
        assert_eq!(
            (&json.path, &json.format, json.force_share),
            (&options.path, &options.format, true)
        );
    }

    #[test]
    fn json_may_be_in_single_quotes() {
        let source = named(r#"json:{'driver':'raw','file':{'filename':'it\'s "b"'}}"#).unwrap();
        assert_eq!(source.path, Path::new(r#"it's "b""#));
    }

    #[test]
    fn a_backing_file_can_be_replaced() {
        let source = Source::from_options(
            "driver=qcow2,file.filename=o,backing.driver=raw,backing.file.filename=b",
        );
        let BackingOverride::Image(backing) = source.unwrap().backing else {
            panic!("no backing image")
        };
        assert_eq!(
            (backing.path.as_path(), backing.format.as_deref()),
            (Path::new("b"), Some("raw"))
        );
    }

    #[test]
    fn unknown_options_are_refused() {
        let error = Source::from_options("driver=qcow2,file.filename=o,foo=1")
            .unwrap_err()
            .to_string();
        assert!(
            error.ends_with("Block format 'qcow2' does not support the option 'foo'"),
            "{error}"
        );
    }

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
