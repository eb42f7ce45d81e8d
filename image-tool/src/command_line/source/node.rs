//! The tree of nodes that `json:{…}` or `--image-opts` describe, of the drivers raw, qcow2 and file. Other drivers are
//! refused by name.

use std::path::PathBuf;

use anyhow::{Result, anyhow, bail, ensure};

use super::tuning;
use super::{BackingOverride, Locks, Source, Window};
use crate::command_line::format_options::{FormatOptions, Kind, Spec, known_format};
use crate::command_line::keyval;
use crate::output::json::{Object, Value};
use crate::output::report;

/// The value of an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) text: String,
    /// A number, boolean or null of JSON.
    pub(crate) bare: bool,
}

/// A node: its driver, its options and its children.
#[derive(Debug, Default)]
pub(crate) struct Node {
    driver: Option<String>,
    own: Vec<(String, Given)>,
    file: Option<Box<Node>>,
    data_file: Option<Box<Node>>,
    backing: Option<Box<Node>>,
    no_backing: bool,
    /// A reference to a node by name.
    reference: Option<String>,
}

/// The option `offset` or `size`.
const fn size_option(name: &'static str) -> Spec {
    Spec {
        name,
        kind: Kind::Size,
        default: None,
        help: "",
    }
}

impl Node {
    /// Sets the option with the path `key`: `filename`, `file.filename`, `backing.file.driver`.
    pub(crate) fn set(&mut self, key: &str, value: Given) -> Result<()> {
        let (head, rest) = key
            .split_once('.')
            .map_or((key, None), |(a, b)| (a, Some(b)));
        let child = match head {
            "file" => &mut self.file,
            "data-file" => &mut self.data_file,
            "backing" => &mut self.backing,
            _ => {
                match key {
                    "driver" => self.driver = Some(value.text),
                    _ => self.own.push((key.to_owned(), value)),
                }
                return Ok(());
            }
        };
        match rest {
            Some(rest) => child.get_or_insert_default().set(rest, value),
            None if head == "backing" && value.text.is_empty() => {
                if !value.bare {
                    report::warning(
                        "Use of \"backing\": \"\" is deprecated; use \"backing\": null instead",
                    );
                }
                self.no_backing = true;
                Ok(())
            }
            None => {
                child.get_or_insert_default().reference = Some(value.text);
                Ok(())
            }
        }
    }

    /// Refuses references, since no other nodes exist.
    fn check_references(&self) -> Result<()> {
        if let Some(name) = &self.reference {
            let alone = self.driver.is_none() && self.own.is_empty() && self.file.is_none();
            ensure!(
                alone,
                "Cannot reference an existing block device with additional options or a new filename"
            );
            bail!("Cannot find device='{name}' nor node-name='{name}'");
        }
        for child in [&self.file, &self.data_file].into_iter().flatten() {
            child.check_references()?;
        }
        match &self.backing {
            Some(backing) => backing
                .check_references()
                .map_err(|error| anyhow!("Could not open backing file: {error}")),
            None => Ok(()),
        }
    }

    pub(crate) fn set_driver(&mut self, driver: &str) {
        self.driver = Some(driver.to_owned());
    }

    fn own(&self, key: &str) -> Option<&str> {
        let found = self.own.iter().rev().find(|(name, _)| name == key);
        found.map(|(_, value)| value.text.as_str())
    }

    fn is_file(&self) -> bool {
        matches!(
            self.driver.as_deref(),
            Some("file" | "host_device" | "host_cdrom")
        )
    }

    /// Whether it is an image that has metadata, or a node without on one.
    fn is_image(&self) -> bool {
        let format = self.driver.as_deref().and_then(known_format);
        format.is_some_and(|format| {
            format.has_metadata() || self.file.as_deref().is_some_and(Self::is_image)
        })
    }

    /// The image that the tree describes; `text` is its name on the command line.
    pub(crate) fn into_source(self, text: &str) -> Result<Source> {
        self.check_references()?;
        if self.driver.is_none() && self.file.is_none() {
            bail!("Must specify either driver or file");
        }
        let shown = self.needs_tree().then(|| self.tree());
        let mut source = self.resolve(text)?;
        source.shown = shown;
        Ok(source)
    }

    fn resolve(&self, text: &str) -> Result<Source> {
        let driver = self.driver.as_deref();
        if self.is_file() {
            let mut source = self.host_file(text, Some("raw".to_owned()))?;
            source.is_protocol = true;
            return Ok(source);
        }
        let file = self
            .file
            .as_deref()
            .filter(|_| driver.is_none_or(|name| known_format(name).is_some()));
        let Some(file) = file else {
            return Err(match driver {
                Some(other) if known_format(other).is_none() => {
                    anyhow!("Unknown driver '{other}'")
                }
                _ => anyhow!("A block device must be specified for \"file\""),
            });
        };
        let mut source = match file.is_image() {
            true => Source::within(Source {
                shown: file.needs_tree().then(|| file.tree()),
                ..file.resolve(text)?
            }),
            false => file.storage(text)?,
        };
        source.format = driver.map(str::to_owned);
        match driver {
            Some("raw") => self.check_options("raw", &["offset", "size"])?,
            _ => self.check_options(driver.unwrap_or("qcow2"), &[])?,
        }
        if driver == Some("raw")
            && let Some(window) = self.window()?
        {
            source.windows.push(window);
        }
        if self.own("force-share").is_some() {
            source.force_share = self.boolean("force-share")?;
        }
        if self.own("cache.direct").is_some() {
            source.direct = self.boolean("cache.direct")?;
        }
        if driver == Some("raw") && (self.backing.is_some() || self.data_file.is_some()) {
            let option = if self.backing.is_some() {
                "backing"
            } else {
                "data-file"
            };
            bail!("Block format 'raw' does not support the option '{option}.driver'");
        }
        if let Some(data_file) = &self.data_file {
            source.data_file = Some(data_file.storage(text)?.path);
        }
        source.backing = match (&self.backing, self.no_backing) {
            (Some(backing), _) => BackingOverride::Image(Box::new(backing.resolve(text)?)),
            (None, true) => BackingOverride::None,
            (None, false) => source.backing,
        };
        Ok(source)
    }

    /// The node as the child of a format: a file, or a part of one.
    fn storage(&self, text: &str) -> Result<Source> {
        match self.driver.as_deref() {
            Some("raw") => {
                self.check_options("raw", &["offset", "size"])?;
                let file = self.file.as_deref();
                let file =
                    file.ok_or_else(|| anyhow!("A block device must be specified for \"file\""))?;
                let mut source = file.storage(text)?;
                source.windows.extend(self.window()?);
                Ok(source)
            }
            None => self.host_file(text, None),
            Some(_) if self.is_file() => self.host_file(text, None),
            // Only a data file can get here with this driver.
            Some("qcow2") => bail!("An image cannot take the place of a data file"),
            Some(other) => bail!("Unknown driver '{other}'"),
        }
    }

    fn host_file(&self, text: &str, format: Option<String>) -> Result<Source> {
        self.check_options("file", &["filename", "locking"])?;
        if self.file.is_some() || self.backing.is_some() || self.data_file.is_some() {
            bail!("Block protocol 'file' doesn't support the option 'file.driver'");
        }
        let filename = match self.own("filename") {
            None if self.driver.is_none() => {
                bail!("A block device must be specified for \"file\"")
            }
            None | Some("") => bail!("The 'file' block driver requires a file name"),
            Some(filename) => filename,
        };
        let mut source = Source::of_file(PathBuf::from(filename), format);
        text.clone_into(&mut source.text);
        source.locks = match self.own("locking") {
            None | Some("auto") => Locks::Auto,
            Some("off") => Locks::Off,
            Some("on") => Locks::On,
            Some(other) => bail!("invalid parameter value: {other}"),
        };
        if self.own("cache.direct").is_some() {
            source.direct = self.boolean("cache.direct")?;
        }
        if self.own("force-share").is_some() {
            source.force_share = self.boolean("force-share")?;
        }
        Ok(source)
    }

    fn boolean(&self, key: &str) -> Result<bool> {
        let value = self.own(key).unwrap_or("on");
        keyval::boolean(value).ok_or_else(|| anyhow!("Parameter '{key}' expects 'on' or 'off'"))
    }

    /// Refuses options that the driver does not have, and invalid values. `own` are the options that the caller reads;
    /// the others only tune, and are ignored.
    fn check_options(&self, driver: &str, own: &[&str]) -> Result<()> {
        for (key, given) in &self.own {
            if own.contains(&key.as_str()) {
                continue;
            }
            match tuning::check(driver, key, &given.text) {
                Some(checked) => checked?,
                None if driver == "file" => {
                    bail!("Block protocol 'file' doesn't support the option '{key}'")
                }
                None => bail!("Block format '{driver}' does not support the option '{key}'"),
            }
        }
        Ok(())
    }

    /// The window of raw's `offset` and `size`.
    fn window(&self) -> Result<Option<Window>> {
        let mut options = FormatOptions::new(vec![size_option("offset"), size_option("size")]);
        for key in ["offset", "size"] {
            if let Some(value) = self.own(key) {
                options.set(key, value)?;
            }
        }
        let (offset, size) = (options.number("offset"), options.number("size"));
        if offset.is_none() && size.is_none() {
            return Ok(None);
        }
        Ok(Some(Window {
            offset: offset.unwrap_or(0),
            size,
            shown: self.tree(),
        }))
    }

    /// Whether the file name does not fully describe the image.
    fn needs_tree(&self) -> bool {
        let is_part = |node: &Self| node.own("offset").or(node.own("size")).is_some();
        let file = self.file.as_deref();
        is_part(self)
            || file.is_some_and(|file| {
                file.driver.as_deref().and_then(known_format).is_some() || is_part(file)
            })
    }

    /// The tree without options that only tune, as QEMU prints images that no file name describes.
    fn tree(&self) -> Value {
        let plain = self.is_file() || self.driver.is_none() && self.file.is_none();
        if !plain && !self.needs_tree() {
            let file = self.file.as_deref().map(Self::tree);
            return Object::new()
                .with_some("driver", self.driver.as_deref())
                .with_some("file", file)
                .into();
        }
        let shown = |key: &str| {
            let (_, given) = self.own.iter().rev().find(|(name, _)| name == key)?;
            let number = given.text.parse::<u64>().ok().filter(|_| given.bare);
            Some(number.map_or_else(|| Value::from(given.text.as_str()), Value::from))
        };
        let driver = match self.driver.as_deref() {
            None if plain => Some("file"),
            other => other,
        };
        Object::new()
            .with_some("driver", driver)
            .with_some("filename", shown("filename").filter(|_| plain))
            .with_some("offset", shown("offset"))
            .with_some("size", shown("size"))
            .with_some("file", self.file.as_deref().map(Self::tree))
            .into()
    }
}
