//! JSON as qemu-img prints it: indented, ASCII only, and the members of an object in the order of QEMU's dictionary,
//! for scripts that compare text.

use std::fmt::Write as _;

/// A JSON value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Text(String),
    List(Vec<Value>),
    Object(Object),
}

/// An object. Members are kept in the order of insertion, and printed in the dictionary's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Object {
    members: Vec<(String, Value)>,
}

impl Object {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The same object with one more member.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.push((name.to_owned(), value.into()));
        self
    }

    /// The same object, with one more member if there is a value.
    #[must_use]
    pub(crate) fn with_some(self, name: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// The members in the order of QEMU's dictionary: by bucket, in a bucket the last inserted first.
    pub(crate) fn in_order(&self) -> Vec<(&str, &Value)> {
        let mut order: Vec<_> = self.members.iter().enumerate().collect();
        order.sort_by_key(|(index, (name, _))| (bucket(name), std::cmp::Reverse(*index)));
        order
            .into_iter()
            .map(|(_, (name, value))| (name.as_str(), value))
            .collect()
    }
}

/// The bucket of a name: tdb's string hash over 512 buckets.
fn bucket(name: &str) -> u32 {
    let bytes = name.as_bytes();
    let seed = 0x238F_13AF_u32.wrapping_mul(bytes.len() as u32);
    let sum = bytes.iter().enumerate().fold(seed, |sum, (index, &byte)| {
        sum.wrapping_add(u32::from(byte) << (index as u32 * 5 % 24))
    });
    1_103_515_243_u32.wrapping_mul(sum).wrapping_add(12345) % 512
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Uint(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Uint(value.into())
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<Vec<Value>> for Value {
    fn from(value: Vec<Value>) -> Self {
        Self::List(value)
    }
}

impl From<Object> for Value {
    fn from(value: Object) -> Self {
        Self::Object(value)
    }
}

impl Value {
    /// The value over several lines, without a final newline.
    pub(crate) fn pretty(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, 0);
        out
    }

    /// The value in one line.
    pub(crate) fn compact(&self) -> String {
        let mut out = String::new();
        self.write_compact(&mut out);
        out
    }

    fn write_compact(&self, out: &mut String) {
        match self {
            Self::List(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    out.push_str(if index > 0 { ", " } else { "" });
                    item.write_compact(out);
                }
                out.push(']');
            }
            Self::Object(object) => {
                out.push('{');
                for (index, (name, value)) in object.in_order().into_iter().enumerate() {
                    out.push_str(if index > 0 { ", " } else { "" });
                    write_text(out, name);
                    out.push_str(": ");
                    value.write_compact(out);
                }
                out.push('}');
            }
            other => other.write(out, 0),
        }
    }

    fn write(&self, out: &mut String, depth: usize) {
        match self {
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Int(value) => {
                let _ = write!(out, "{value}");
            }
            Self::Uint(value) => {
                let _ = write!(out, "{value}");
            }
            Self::Text(text) => write_text(out, text),
            Self::List(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    separate(out, index, depth + 1);
                    item.write(out, depth + 1);
                }
                line(out, depth);
                out.push(']');
            }
            Self::Object(object) => {
                out.push('{');
                for (index, (name, value)) in object.in_order().into_iter().enumerate() {
                    separate(out, index, depth + 1);
                    write_text(out, name);
                    out.push_str(": ");
                    value.write(out, depth + 1);
                }
                line(out, depth);
                out.push('}');
            }
        }
    }
}

fn separate(out: &mut String, index: usize, depth: usize) {
    if index > 0 {
        out.push(',');
    }
    line(out, depth);
}

fn line(out: &mut String, depth: usize) {
    out.push('\n');
    for _ in 0..depth {
        out.push_str("    ");
    }
}

fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04X}");
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_in_the_order_of_the_dictionary() {
        let object = [
            "actual-size",
            "children",
            "cluster-size",
            "dirty-flag",
            "filename",
            "format",
            "virtual-size",
        ]
        .into_iter()
        .fold(Object::new(), |object, name| object.with(name, 0u64));
        let names: Vec<_> = object
            .in_order()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(
            names,
            [
                "children",
                "virtual-size",
                "filename",
                "cluster-size",
                "format",
                "actual-size",
                "dirty-flag"
            ]
        );
    }

    #[test]
    fn text_is_ascii() {
        assert_eq!(
            Value::from("a\"\u{e4}\u{1f600}\n").pretty(),
            r#""a\"\u00E4\uD83D\uDE00\n""#
        );
    }

    #[test]
    fn an_empty_list_takes_two_lines() {
        assert_eq!(
            Value::from(Object::new().with("x", Vec::new())).pretty(),
            "{\n    \"x\": [\n    ]\n}"
        );
    }
}
