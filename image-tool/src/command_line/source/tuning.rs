//! Node options that tune how an image is used (caches, `aio`, discard). They are checked as QEMU checks them, and have
//! no effect.

use anyhow::{Result, anyhow, ensure};

use crate::command_line::format_options::{self, FormatOptions, Spec};
use crate::command_line::keyval;

/// The type of an option's value.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Boolean,
    Number,
    Size,
    Discard,
    OverlapCheck,
    NodeName,
    OneOf(&'static [&'static str]),
}

const ANY: &[(&str, Kind)] = &[
    ("node-name", Kind::NodeName),
    ("read-only", Kind::Boolean),
    ("auto-read-only", Kind::Boolean),
    ("discard", Kind::Discard),
    ("detect-zeroes", Kind::OneOf(&["off", "on", "unmap"])),
    ("cache.direct", Kind::Boolean),
    ("cache.no-flush", Kind::Boolean),
    ("force-share", Kind::Boolean),
    ("active", Kind::Boolean),
];

const QCOW2: &[(&str, Kind)] = &[
    ("lazy-refcounts", Kind::Boolean),
    ("pass-discard-request", Kind::Boolean),
    ("pass-discard-snapshot", Kind::Boolean),
    ("pass-discard-other", Kind::Boolean),
    ("discard-no-unref", Kind::Boolean),
    ("overlap-check", Kind::OverlapCheck),
    ("overlap-check.template", Kind::OverlapCheck),
    ("overlap-check.main-header", Kind::Boolean),
    ("overlap-check.active-l1", Kind::Boolean),
    ("overlap-check.active-l2", Kind::Boolean),
    ("overlap-check.refcount-table", Kind::Boolean),
    ("overlap-check.refcount-block", Kind::Boolean),
    ("overlap-check.snapshot-table", Kind::Boolean),
    ("overlap-check.inactive-l1", Kind::Boolean),
    ("overlap-check.inactive-l2", Kind::Boolean),
    ("overlap-check.bitmap-directory", Kind::Boolean),
    ("cache-size", Kind::Size),
    ("l2-cache-size", Kind::Size),
    ("l2-cache-entry-size", Kind::Size),
    ("refcount-cache-size", Kind::Size),
    ("cache-clean-interval", Kind::Number),
];

const FILE: &[(&str, Kind)] = &[
    ("aio", Kind::OneOf(&["threads", "native", "io_uring"])),
    ("aio-max-batch", Kind::Number),
    ("drop-cache", Kind::Boolean),
    ("x-check-cache-dropped", Kind::Boolean),
];

/// Checks the option `key` of this driver; `None` if the driver does not have it.
pub(crate) fn check(driver: &str, key: &str, value: &str) -> Option<Result<()>> {
    let own = match driver {
        "qcow2" => QCOW2,
        "file" => FILE,
        _ => &[],
    };
    let mut known = ANY.iter().chain(own);
    let (name, kind) = known.find(|(name, _)| *name == key)?;
    Some(kind.check(name, value))
}

impl Kind {
    /// Refuses an invalid value.
    fn check(self, key: &'static str, value: &str) -> Result<()> {
        match self {
            Self::Boolean => keyval::boolean(value)
                .map(|_| ())
                .ok_or_else(|| anyhow!("Parameter '{key}' expects 'on' or 'off'")),
            Self::Number => value
                .parse::<u64>()
                .map(|_| ())
                .map_err(|_| anyhow!("Parameter '{key}' expects a number")),
            Self::Size => check_size(key, value),
            Self::Discard => {
                let known = ["ignore", "off", "unmap", "on"].contains(&value);
                ensure!(known, "Invalid discard option");
                Ok(())
            }
            Self::OverlapCheck => {
                let known = ["none", "constant", "cached", "all"].contains(&value);
                ensure!(
                    known,
                    "Unsupported value '{value}' for qcow2 option 'overlap-check'. \
                     Allowed are any of the following: none, constant, cached, all"
                );
                Ok(())
            }
            Self::NodeName => check_node_name(value),
            Self::OneOf(values) => {
                ensure!(values.contains(&value), "invalid parameter value: {value}");
                Ok(())
            }
        }
    }
}

/// Checks the value as that of a size option.
fn check_size(name: &'static str, value: &str) -> Result<()> {
    let size = Spec {
        name,
        kind: format_options::Kind::Size,
        default: None,
        help: "",
    };
    FormatOptions::new(vec![size]).set(name, value)
}

fn check_node_name(name: &str) -> Result<()> {
    const MAX_LEN: usize = 31;
    let well_formed = name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    ensure!(well_formed, "Invalid node-name: '{name}'");
    ensure!(name.len() <= MAX_LEN, "Node name too long");
    Ok(())
}
