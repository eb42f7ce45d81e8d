//! A definition as a TOML text. What is wrong with one is said with its place.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use toml_edit::{Document, Item, de};

use super::Definition;
use super::check::{Problem, Step, check};

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// From 1 on, as editors count.
    pub(crate) line: usize,
    /// In characters, from 1 on.
    pub(crate) column: usize,
    pub(crate) why: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {}, column {}: {}",
            self.line, self.column, self.why
        )
    }
}

impl Wrong {
    fn new(text: &[u8], at: usize, why: impl Into<String>) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line_begin = before.iter().rposition(|&byte| byte == b'\n');
        let in_line = before.get(line_begin.map_or(0, |at| at + 1)..);
        let in_line = String::from_utf8_lossy(in_line.unwrap_or_default());
        Self {
            line: before.iter().filter(|&&byte| byte == b'\n').count() + 1,
            column: in_line.chars().count() + 1,
            why: why.into(),
        }
    }
}

/// Reads a definition.
///
/// # Errors
/// The first thing that is wrong with it.
pub(crate) fn parse(bytes: &[u8]) -> Result<Definition, Wrong> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Wrong::new(bytes, error.valid_up_to(), "this is not UTF-8"))?;
    let wrong = |span: Option<Range<usize>>, why: String| {
        Wrong::new(bytes, span.map_or(0, |span| span.start), why)
    };
    let document = Document::parse(text)
        .map_err(|error| wrong(error.span(), error.message().replace('\n', ", ")))?;
    let input = de::Deserializer::from(document.clone());
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(input, &mut track);
    let definition = Definition::deserialize(tracked)
        .map_err(|error| wrong(error.span(), plain(&track.path(), error.message())))?;
    match check(&definition) {
        Ok(()) => Ok(definition),
        Err(Problem { at, why }) => Err(wrong(span(document.as_item(), &at), why)),
    }
}

/// Writes a definition that has no text of its own yet.
///
/// # Errors
/// When a path is not UTF-8.
pub(crate) fn write(definition: &Definition) -> anyhow::Result<String> {
    toml_edit::ser::to_string_pretty(definition)
        .map_err(|error| anyhow::anyhow!("a definition cannot have this: {error}"))
}

/// The place of a value, or of what is nearest around it.
fn span(item: &Item, at: &[Step]) -> Option<Range<usize>> {
    let Some((first, rest)) = at.split_first() else {
        return item.span();
    };
    let inner = match first {
        Step::Key(key) => item.get(key.as_str()),
        Step::Index(index) => item.get(*index),
    };
    inner
        .and_then(|inner| span(inner, rest))
        .or_else(|| item.span())
}

/// serde's message in the words of this program.
fn plain(path: &serde_path_to_error::Path, message: &str) -> String {
    let message = message.replace('\n', ", ");
    if let Some((unknown, known)) = unknown(&message, "unknown field") {
        return match nearest(unknown, &known) {
            Some(nearest) => format!("unknown key '{unknown}': did you mean '{nearest}'?"),
            None => format!("unknown key '{unknown}': {} are known", known.join(", ")),
        };
    }
    let why = if let Some((unknown, known)) = unknown(&message, "unknown variant") {
        format!("'{unknown}' is not one of {}", known.join(", "))
    } else if let Some(key) = quoted(&message, "missing field") {
        format!("the key '{key}' is missing")
    } else {
        expected(&message)
    };
    // The path of a value within no table is a dot.
    match path.to_string().as_str() {
        "." => why,
        path => format!("{path}: {why}"),
    }
}

/// The first word in backquotes after `begin`, and the others.
fn unknown<'a>(message: &'a str, begin: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let rest = message.strip_prefix(begin)?.strip_prefix(" `")?;
    // The first word is the file's, and can have any characters.
    let (unknown, known) = rest.rsplit_once("`, expected ")?;
    let known = known.split('`').skip(1).step_by(2).collect();
    Some((unknown, known))
}

fn quoted<'a>(message: &'a str, begin: &str) -> Option<&'a str> {
    let rest = message.strip_prefix(begin)?;
    rest.trim().strip_prefix('`')?.strip_suffix('`')
}

fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    // Below this, words share little more than letters.
    const ALIKE: f64 = 0.7;
    let alike = known.iter().map(|word| (strsim::jaro(unknown, word), word));
    let alike = alike.filter(|(degree, _)| *degree > ALIKE);
    let best = alike.max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.map(|(_, word)| *word)
}

/// A message about a type, with TOML's words for Rust's.
fn expected(message: &str) -> String {
    let Some((found, expected)) = message.rsplit_once(", expected ") else {
        return message.to_owned();
    };
    let expected = match expected {
        "i64" | "u64" => "a whole number",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        "path string" => "a path",
        "a string" => "a text",
        "a map" => "a table",
        other if other.starts_with("struct ") => "a table",
        other => other,
    };
    let found = found
        .replace("map", "a table")
        .replace("sequence", "an array");
    format!("{found}, expected {expected}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::definition::{Action, Format, Serial};

    const FULL: &str = r#"
name = "web" # ours
uuid = "6695eb01-f6a4-8304-79aa-97f2502e193f"
title = "T"
description = "D"
cpus = 2
memory = 1073741824
kernel = "/k"
initramfs = "/i"
cmdline = "quiet"
serial = { file = "/log" }
autostart = true
on_poweroff = "preserve"

[[disks]]
path = "/d"
format = "qcow2"
queues = 2
allow_path = ["/base"]

[[nets]]
network = "default"
mac = "52:54:00:00:00:01"

[[vhost_user]]
type = 26
socket = "/s"
tag = "t"

[metadata]
"http://example.org/app" = "text"
"#;

    #[test]
    fn a_definition_is_read_as_written_and_written_as_read() {
        let read = parse(FULL.as_bytes()).unwrap();
        assert_eq!(read.name, "web");
        assert_eq!(read.memory.to_string(), "1G");
        assert_eq!(read.serial, Serial::File("/log".into()));
        assert_eq!(read.on_poweroff, Action::Preserve);
        assert_eq!(read.on_reboot, Action::Restart);
        assert_eq!(read.disks[0].format, Format::Qcow2);
        assert_eq!(read.vhost_user[0].device_type.to_string(), "26");
        assert_eq!(read.metadata["http://example.org/app"], "text");

        let written = write(&read).unwrap();
        assert_eq!(parse(written.as_bytes()).unwrap(), read, "{written}");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let guest = "name = 'g'\nkernel = '/k'\n";
        for (more, says) in [
            (
                "memry = '1G'",
                "line 3, column 1: unknown key 'memry': did you mean 'memory'?",
            ),
            (
                "[[disks]]\npath = '/d'\nformat = 'raw'\n  read-only = true",
                "line 6, column 3: unknown key 'read-only': did you mean 'readonly'?",
            ),
            (
                "zzz = 1",
                "line 3, column 1: unknown key 'zzz': name, uuid, title,",
            ),
            ("'a`, b' = 1", "line 3, column 1: unknown key 'a`, b'"),
            ("cpus = 0", "line 3, column 8: cpus: it must be 1 to 255"),
            ("cpus = -1", "line 3, column 8: cpus: it must be 1 to 255"),
            (
                "cpus = 'two'",
                "line 3, column 8: cpus: invalid type: string \"two\", expected a whole number",
            ),
            (
                "memory = '1Q'",
                "line 3, column 10: memory: a size is expected",
            ),
            ("memory = 0", "line 3, column 10: memory: a guest has 2M to"),
            (
                "memory = 512",
                "line 3, column 10: memory: 512 without a unit is bytes: write 512M",
            ),
            (
                "on_crash = 'explode'",
                "line 3, column 12: on_crash: 'explode' is not one of destroy, restart, preserve",
            ),
            ("uuid = 'x'", "line 3, column 8: uuid: UUID parsing failed"),
            (
                "[[disks]]\npath = '/d'",
                "line 3, column 1: disks[0]: the key 'format' is missing",
            ),
            (
                "[[disks]]\npath = '/d'\nformat = 'vmdk'",
                "line 5, column 10: disks[0].format: 'vmdk' is not one of raw, qcow2",
            ),
            (
                "[[disks]]\npath = 'd'\nformat = 'raw'",
                "line 4, column 8: disks[0].path: 'd' is not an absolute path",
            ),
            (
                "[[nets]]\nnetwork = 'x'\nmac = '01:00:00:00:00:00'",
                "line 5, column 7: nets[0].mac: \"01:00:00:00:00:00\" is not a MAC",
            ),
            (
                "[[nets]]\nnetwork = '../x'",
                "line 4, column 11: nets[0].network: '../x' is no name",
            ),
            ("cpus = 1\ncpus = 2", "line 4, column 1: duplicate key"),
            ("cpus = ", "line 3, column 8: "),
            ("[[nets]", "line 3, column 8: "),
            (
                "title = \"a\\nb\"",
                "line 3, column 9: title: it has more than one line",
            ),
            (
                "cmdline = \"a\\u0000b\"",
                "line 3, column 11: cmdline: it has a zero character",
            ),
            (
                "disks = 1",
                "line 3, column 9: disks: invalid type: integer `1`, expected an array",
            ),
            (
                "serial = 'tty'",
                "line 3, column 10: serial: 'tty' is not one of console, off, file",
            ),
        ] {
            let wrong = parse(format!("{guest}{more}").as_bytes()).unwrap_err();
            let wrong = wrong.to_string();
            assert!(wrong.starts_with(says), "{more}\n {wrong}\n {says}");
            assert!(!wrong.contains('\n'), "{wrong}");
        }
    }

    #[test]
    fn what_is_missing_or_no_text_is_said() {
        let says = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
        assert_eq!(says(b""), "line 1, column 1: the key 'name' is missing");
        assert_eq!(
            says(b"name = 'g'"),
            "line 1, column 1: the key 'kernel' is missing"
        );
        assert_eq!(
            says(b"a = 1\nb = '\xc3\xa9\xff'"),
            "line 2, column 7: this is not UTF-8"
        );
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let deep = format!("name = {}", "[".repeat(100_000));
        assert!(parse(deep.as_bytes()).is_err());
        let deep = format!("{}a = 1", "a.".repeat(100_000));
        assert!(parse(deep.as_bytes()).is_err());
    }
}
