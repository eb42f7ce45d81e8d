//! Values of the command line and of JSON: `4` or `"4"`, `1G`, `on`.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de};

#[derive(Deserialize)]
#[serde(untagged, expecting = "a whole number, a text or a switch is expected")]
enum Loose {
    Number(u64),
    Switch(bool),
    Text(String),
}

/// A whole number: `4` or `"4"`.
pub(crate) fn number<'de, D, T>(input: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    let number = match Loose::deserialize(input)? {
        Loose::Number(number) => Some(number),
        Loose::Text(text) => text.parse().ok(),
        Loose::Switch(_) => None,
    };
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| de::Error::custom("a number is expected, and not so large a one"))
}

/// An optional [`number`].
pub(crate) fn optional_number<'de, D, T>(input: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    number(input).map(Some)
}

/// An optional list of numbers.
pub(crate) fn optional_numbers<'de, D: Deserializer<'de>>(
    input: D,
) -> Result<Option<Vec<u16>>, D::Error> {
    let numbers: Vec<u64> = Deserialize::deserialize(input)?;
    let sizes: Result<Vec<u16>, _> = numbers.into_iter().map(u16::try_from).collect();
    sizes.map(Some).map_err(de::Error::custom)
}

/// A text, or a number as a text.
pub(crate) fn text<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    match Loose::deserialize(input)? {
        Loose::Number(number) => Ok(number.to_string()),
        Loose::Text(text) => Ok(text),
        Loose::Switch(_) => Err(de::Error::custom("a name or a number is expected")),
    }
}

/// Bytes: `1073741824`, `1G`, `512M`, `4096K`.
pub(crate) fn size<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    match Loose::deserialize(input)? {
        Loose::Number(number) => Ok(number),
        Loose::Text(text) => parse_size(&text),
        Loose::Switch(_) => None.ok_or(()),
    }
    .map_err(|()| de::Error::custom("a size is expected: bytes, or a number with K, M, G or T"))
}

fn parse_size(text: &str) -> Result<u64, ()> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(()),
    };
    let number: u64 = digits.parse().map_err(drop)?;
    number.checked_mul(1 << shift).ok_or(())
}

/// `on`, `off`, `true`, `false`.
pub(crate) fn switch<'de, D: Deserializer<'de>>(input: D) -> Result<bool, D::Error> {
    match Loose::deserialize(input)? {
        Loose::Switch(switch) => Ok(switch),
        Loose::Text(text) if ["on", "true"].contains(&text.as_str()) => Ok(true),
        Loose::Text(text) if ["off", "false"].contains(&text.as_str()) => Ok(false),
        _ => Err(de::Error::custom("`on` or `off` is expected")),
    }
}

/// A path that is not empty.
pub(crate) fn path<'de, D: Deserializer<'de>>(input: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(input)?;
    if path.as_os_str().is_empty() {
        return Err(de::Error::custom("a path is expected"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("0", Ok(0)),
            ("4096", Ok(4096)),
            ("4K", Ok(4096)),
            ("512M", Ok(512 << 20)),
            ("1G", Ok(1 << 30)),
            ("2t", Ok(2 << 40)),
            ("", Err(())),
            ("G", Err(())),
            ("-1", Err(())),
            ("1GB", Err(())),
            ("99999999T", Err(())),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }
}
