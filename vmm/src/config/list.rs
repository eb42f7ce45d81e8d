//! `key=value,key=value`: the form of options with several values.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::contract::{self, Field};

/// Reads a list into the type of its JSON form, so that keys and values are defined once.
///
/// A value with a comma is put in double quotes. `foreign` are fields of Cloud Hypervisor that the type does not have.
pub(super) fn parse<T: DeserializeOwned>(
    text: &str,
    foreign: &[&'static [Field]],
) -> Result<T, String> {
    let mut map = Map::new();
    for part in split(text)? {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("`{part}` is not of the form key=value"))?;
        let value = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'))
            .unwrap_or(value);
        let former = map.insert(key.to_owned(), Value::String(value.to_owned()));
        if former.is_some() {
            return Err(format!("`{key}` is given twice"));
        }
    }
    contract::remove("", &mut map, foreign)?;
    serde_path_to_error::deserialize(Value::Object(map)).map_err(|error| error.to_string())
}

/// Splits at the commas that are not between double quotes.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let mut parts = Vec::new();
    let (mut start, mut quoted) = (0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if quoted {
        return Err("a double quote is not closed".to_owned());
    }
    parts.push(&text[start..]);
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Parts {
        a: String,
        b: Option<String>,
        #[serde(default, deserialize_with = "crate::config::value::number")]
        n: u16,
        #[serde(default, deserialize_with = "crate::config::value::switch")]
        s: bool,
    }

    fn parse_parts(text: &str) -> Result<Parts, String> {
        parse(text, &[])
    }

    fn parts(a: &str, b: Option<&str>) -> Result<Parts, String> {
        Ok(Parts {
            a: a.to_owned(),
            b: b.map(str::to_owned),
            n: 0,
            s: false,
        })
    }

    #[test]
    fn parts_are_separated_by_commas_outside_of_quotes() {
        assert_eq!(parse_parts("a=1"), parts("1", None));
        assert_eq!(parse_parts("b=2,a=1"), parts("1", Some("2")));
        assert_eq!(parse_parts("a=\"1,b=2\""), parts("1,b=2", None));
        assert_eq!(parse_parts("a=x=y"), parts("x=y", None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("", "``"),
            ("a", "`a`"),
            ("a=1,", "``"),
            ("b=1", "`a`"),
            ("a=1,a=2", "`a`"),
            ("a=1,c=2", "`c`"),
            ("a=\"1", "quote"),
            ("a=1,n=x", "n: a number is expected"),
            ("a=1,s=maybe", "s: `on` or `off` is expected"),
        ] {
            let error = parse_parts(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
