//! `-o`: the tables of format options, and parsing and printing them.

mod creation;
pub(crate) mod empty_file;
mod encryption;
pub(crate) mod extent_size;
mod table;

use std::fmt::Write as _;

use anyhow::{Result, anyhow};

use crate::command_line::keyval;
use crate::command_line::size::{self, SizeError};
use crate::output::report::Hinted;

pub(crate) use creation::{
    FILE, check_preallocation, creation, is_driver, is_only_read, known_format, measured,
    new_format, not_creatable, preallocation,
};
pub(crate) use encryption::{
    Encryption, check_secret, encryption, luks_header_len, not_encrypting,
};
pub(crate) use table::{Kind, Spec, amendable, creatable, description, own};

/// The option values for a format.
#[derive(Debug, Clone)]
pub(crate) struct FormatOptions {
    table: Vec<Spec>,
    given: Vec<(String, Given)>,
}

/// The value of an option as text, and as a number if it is one.
#[derive(Debug, Clone)]
struct Given {
    text: String,
    number: Option<u64>,
}

impl FormatOptions {
    pub(crate) fn new(table: Vec<Spec>) -> Self {
        Self {
            table,
            given: Vec::new(),
        }
    }

    /// Parses an option list; a later value replaces an earlier one.
    pub(crate) fn parse(&mut self, list: &str) -> Result<()> {
        for item in keyval::split(list, None) {
            let (key, value) = match &item.value {
                Some(value) => (&*item.key, &**value),
                None => keyval::switch(&item.key),
            };
            self.set(key, value)?;
        }
        Ok(())
    }

    fn spec(&self, key: &str) -> Option<&Spec> {
        self.table.iter().find(|spec| spec.name == key)
    }

    pub(crate) fn knows(&self, key: &str) -> bool {
        self.spec(key).is_some()
    }

    /// Sets one option.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let spec = self
            .spec(key)
            .ok_or_else(|| anyhow!("Invalid parameter '{key}'"))?;
        let number = match spec.kind {
            Kind::Text => None,
            Kind::Bool => {
                keyval::boolean(value)
                    .ok_or_else(|| anyhow!("Parameter '{key}' expects 'on' or 'off'"))?;
                None
            }
            Kind::Number => Some(parse_number(value).map_err(|error| match error {
                SizeError::OutOfRange => {
                    anyhow!("Value '{value}' is too large for parameter '{key}'")
                }
                SizeError::Invalid => anyhow!("Parameter '{key}' expects a number"),
            })?),
            Kind::Size => Some(size::parse(value).map_err(|error| not_a_size(key, value, error))?),
        };
        let given = Given {
            text: value.to_owned(),
            number,
        };
        match self.given.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = given,
            None => self.given.push((key.to_owned(), given)),
        }
        Ok(())
    }

    /// Sets a number.
    pub(crate) fn set_number(&mut self, key: &str, value: u64) -> Result<()> {
        self.set(key, &value.to_string())
    }

    fn given(&self, key: &str) -> Option<&Given> {
        self.given
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, given)| given)
    }

    /// The text of an option that was given.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.given(key).map(|given| given.text.as_str())
    }

    /// The number of an option that was given.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.given(key).and_then(|given| given.number)
    }

    /// A boolean option that was given.
    pub(crate) fn boolean(&self, key: &str) -> Option<bool> {
        self.text(key).and_then(keyval::boolean)
    }

    /// Every option that was given, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.given.iter().map(|(name, _)| name.as_str())
    }

    /// The options with their values or defaults, as `create` prints them: in the table's order, each after a space.
    pub(crate) fn announce(&self) -> String {
        let mut out = String::new();
        for spec in &self.table {
            let value = match (self.given(spec.name), spec.default) {
                (
                    Some(Given {
                        number: Some(number),
                        ..
                    }),
                    _,
                ) => number.cast_signed().to_string(),
                (Some(given), _) => given.text.clone(),
                (None, Some(default)) => default.to_owned(),
                (None, None) => continue,
            };
            let value = if spec.kind == Kind::Text {
                value.replace(',', ",,")
            } else {
                value
            };
            let _ = write!(out, " {}={value}", spec.name);
        }
        out
    }
}

/// A line for each option, sorted by name, as `-o help` prints them.
pub(crate) fn explain(table: &[Spec]) -> String {
    let mut specs: Vec<_> = table.iter().collect();
    specs.sort_by_key(|spec| spec.name);
    let mut out = String::new();
    for spec in specs {
        let left = format!("{}=<{}>", spec.name, spec.kind.word());
        let _ = match spec.help {
            "" => writeln!(out, "  {left}"),
            help => writeln!(out, "  {left:<22} - {help}"),
        };
    }
    out
}

fn parse_number(text: &str) -> Result<u64, SizeError> {
    let text = text.trim_start();
    match text.strip_prefix('-') {
        // As in C, a negative number wraps; its user refuses it as too large.
        Some(digits) => size::integer(digits).map(u64::wrapping_neg),
        None => size::integer(text),
    }
}

fn not_a_size(key: &str, value: &str, error: SizeError) -> anyhow::Error {
    if error == SizeError::OutOfRange {
        return anyhow!("Value '{value}' is out of range for parameter '{key}'");
    }
    Hinted {
        message: format!("Parameter '{key}' expects a non-negative number below 2^64"),
        hint: "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
               and exabytes, respectively."
            .to_owned(),
    }
    .into()
}

/// Joins the values of repeated `-o` options into one list.
pub(crate) fn joined(lists: &[String]) -> Result<Option<String>> {
    if let Some(bad) = lists.iter().find(|list| !keyval::is_joinable(list)) {
        return Err(anyhow!("Invalid option list: {bad}"));
    }
    Ok((!lists.is_empty()).then(|| lists.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2(list: &str) -> Result<FormatOptions> {
        let mut options = FormatOptions::new(creatable(qcow::Format::Qcow2));
        options.parse(list)?;
        Ok(options)
    }

    #[test]
    fn options_are_announced_in_the_tables_order_with_defaults() {
        assert_eq!(
            qcow2("refcount_bits=1,size=1M,backing_file=a,,b")
                .unwrap()
                .announce(),
            " cluster_size=65536 extended_l2=off compression_type=zlib size=1048576 backing_file=a,,b lazy_refcounts=off \
             refcount_bits=1"
        );
    }

    #[test]
    fn the_last_value_counts() {
        assert_eq!(
            qcow2("size=1M,size=2M").unwrap().number("size"),
            Some(2 << 20)
        );
    }

    #[test]
    fn wrong_values_are_named() {
        let error = |list| qcow2(list).unwrap_err().to_string();
        assert_eq!(error("foo=1"), "Invalid parameter 'foo'");
        assert_eq!(
            error("lazy_refcounts=maybe"),
            "Parameter 'lazy_refcounts' expects 'on' or 'off'"
        );
        assert!(
            error("size=x")
                .starts_with("Parameter 'size' expects a non-negative number below 2^64\n")
        );
    }
}
