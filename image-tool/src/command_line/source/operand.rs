//! Parsing the name of an image: a file name, `file:NAME`, `json:{…}`, or with `--image-opts` an option list. Other
//! protocols and formats are refused by name.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, anyhow, bail};
use serde_json::error::Category;

use super::node::{Given, Node};
use super::{Source, local_path, relative_to};
use crate::command_line::keyval;
use crate::output::report::{self, Hinted};

/// `--follow-json-names`: whether `json:` names that images record are followed. Set before a file is opened.
static FOLLOW_JSON: AtomicBool = AtomicBool::new(false);

/// Allows `json:` names in images, for raw, qcow2 and local files.
pub(crate) fn follow_json_names() {
    FOLLOW_JSON.store(true, Ordering::Relaxed);
}

/// The error for options that are not UTF-8: converted with losses, they would name other files.
fn not_text(operand: &OsStr) -> anyhow::Error {
    anyhow!("Could not open '{}': not valid UTF-8", operand.display())
}

impl Source {
    /// Parses an operand: a file name, or with `image_opts` an option list.
    pub(crate) fn parse(operand: &OsStr, format: Option<&str>, image_opts: bool) -> Result<Self> {
        if image_opts {
            if format.is_some() {
                bail!("--image-opts and --format are mutually exclusive");
            }
            let text = operand.to_str();
            return Self::from_options(text.ok_or_else(|| not_text(operand))?);
        }
        Self::from_name(operand, format)
    }

    /// Parses a file name, with or without a protocol.
    pub(crate) fn from_name(name: &OsStr, format: Option<&str>) -> Result<Self> {
        let text = name.to_string_lossy().into_owned();
        if let Some(json) = text.strip_prefix("json:") {
            name.to_str().ok_or_else(|| not_text(name))?;
            return Self::from_json(&text, json, format);
        }
        let path = local_path(name).map_err(|error| anyhow!("Could not open '{text}': {error}"))?;
        if path.as_os_str().is_empty() {
            bail!("Could not open '{text}': The 'file' block driver requires a file name");
        }
        // The driver `file` has no format node.
        let is_protocol = format == Some("file");
        let format = if is_protocol { Some("raw") } else { format };
        Ok(Self {
            text,
            is_protocol,
            ..Self::of_file(path, format.map(str::to_owned))
        })
    }

    /// The backing file that the user gives to `image`: a relative name is relative to the image's folder.
    pub(crate) fn beside(image: &Path, name: &str, format: Option<&str>) -> Result<Self> {
        if name.starts_with("json:") {
            return Self::from_name(OsStr::new(name), format);
        }
        let path = relative_to(image, name)?;
        Ok(Self::of_file(path, format.map(str::to_owned)))
    }

    /// The backing file that `image` records.
    pub(crate) fn recorded(image: &Path, name: &str, format: Option<&str>) -> Result<Self> {
        if name.starts_with("json:") && !FOLLOW_JSON.load(Ordering::Relaxed) {
            bail!("the image names '{name}', which is followed only with --follow-json-names");
        }
        Self::beside(image, name, format)
    }

    fn from_options(text: &str) -> Result<Self> {
        let options = keyval::split(text, Some("file"))
            .into_iter()
            .map(|item| {
                let (key, text) = match item.value {
                    Some(text) => (item.key, text),
                    None => bare_name(&item.key),
                };
                (key, Given { text, bare: false })
            })
            .collect();
        Self::from_flat(text, options, None)
            .map_err(|error| with_hint(error, |why| format!("Could not open '{text}': {why}")))
    }

    fn from_json(text: &str, json: &str, format: Option<&str>) -> Result<Self> {
        let failed = |error: String| anyhow!("Could not open '{text}': {error}");
        let value = self::json(json)
            .map_err(|why| failed(format!("Could not parse the JSON options: {why}")))?;
        let serde_json::Value::Object(members) = value else {
            return Err(failed("Invalid JSON object given".to_owned()));
        };
        let mut options = Vec::new();
        flatten("", &members, &mut options);
        Self::from_flat(text, options, format)
            .map_err(|error| with_hint(error, |why| format!("Could not open '{text}': {why}")))
    }

    /// Builds it from options whose keys are paths: `file.filename`, `backing.driver`.
    fn from_flat(text: &str, options: Vec<(String, Given)>, format: Option<&str>) -> Result<Self> {
        let mut node = Node::default();
        for (key, value) in options {
            node.set(&key, value)?;
        }
        if let Some(format) = format {
            node.set_driver(format);
        }
        node.into_source(text)
    }
}

/// The option that a bare name sets, with QEMU's warning that the short form is deprecated.
fn bare_name(name: &str) -> (String, String) {
    let (key, value) = keyval::switch(name);
    report::warning(format_args!(
        "short-form boolean option '{name}' deprecated\nPlease use {key}={value} instead"
    ));
    (key.to_owned(), value.to_owned())
}

/// Parses JSON as QEMU does.
pub(crate) fn json(text: &str) -> Result<serde_json::Value> {
    serde_json::from_str(&double_quoted(text)).map_err(|error| match error.classify() {
        _ if text.trim().is_empty() => anyhow!("Expecting a JSON value"),
        Category::Eof => anyhow!("JSON parse error, premature EOI"),
        _ => anyhow!("JSON parse error, {error}"),
    })
}

/// Replaces single quotes, which QEMU accepts and the parser does not.
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
    options: &mut Vec<(String, Given)>,
) {
    for (name, value) in members {
        flatten_value(format!("{prefix}{name}"), value, options);
    }
}

fn flatten_value(key: String, value: &serde_json::Value, options: &mut Vec<(String, Given)>) {
    use serde_json::Value;
    let (text, bare) = match value {
        Value::Object(inner) => return flatten(&format!("{key}."), inner, options),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                flatten_value(format!("{key}.{index}"), item, options);
            }
            return;
        }
        Value::String(text) => (text.clone(), false),
        Value::Bool(value) => (if *value { "on" } else { "off" }.to_owned(), true),
        Value::Number(number) => (number.to_string(), true),
        Value::Null => (String::new(), true),
    };
    options.push((key, Given { text, bare }));
}

/// The error with another message and the same hint.
fn with_hint(error: anyhow::Error, words: impl FnOnce(String) -> String) -> anyhow::Error {
    match error.downcast::<Hinted>() {
        Ok(hinted) => Hinted {
            message: words(hinted.message),
            hint: hinted.hint,
        }
        .into(),
        Err(error) => anyhow!("{}", words(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command_line::source::BackingOverride;

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
}
