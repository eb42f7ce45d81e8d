//! Values of a definition: their forms and ranges.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The least and the most memory of a guest, and the size of its pages.
const MIN_MEMORY: u64 = 2 << 20;
const MAX_MEMORY: u64 = 32 << 40;
const PAGE_SIZE: u64 = 4096;

/// The most bytes of a disk's serial number (virtio 1.2, section 5.2.6).
const SERIAL_LENGTH: usize = 20;

/// The most queues of any virtio device.
const MAX_VHOST_USER_QUEUES: u16 = 1024;

/// The names of virtio device types that the monitor knows.
const TYPES: &[&str] = &[
    "net", "blk", "console", "rng", "balloon", "scsi", "gpu", "input", "vsock", "crypto", "sound",
    "fs", "pmem", "rpmb", "scmi", "i2c", "can", "gpio", "spi",
];

/// An amount of memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Memory(u64);

impl Memory {
    pub(crate) const fn bytes(self) -> u64 {
        self.0
    }

    /// A number without a unit. Of one that can only be meant otherwise, the error says what to write.
    fn from_plain(number: u64) -> Result<Self, String> {
        if (1..MIN_MEMORY).contains(&number) {
            return Err(format!(
                "{number} without a unit is bytes: write {number}M for {number} MiB"
            ));
        }
        Self::new(number)
    }

    fn new(bytes: u64) -> Result<Self, String> {
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&bytes) {
            let (least, most) = (MIN_MEMORY >> 20, MAX_MEMORY >> 40);
            return Err(format!("a guest has {least}M to {most}T of memory"));
        }
        if !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(format!(
                "{bytes} bytes are not a multiple of the page size, {PAGE_SIZE}"
            ));
        }
        Ok(Self(bytes))
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self(512 << 20)
    }
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text.get(digits.len()..).unwrap_or_default() {
            "" => Some(0),
            "K" | "k" => Some(10),
            "M" | "m" => Some(20),
            "G" | "g" => Some(30),
            "T" | "t" => Some(40),
            _ => None,
        };
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        let (Some(shift), true, false) = (shift, is_number, digits.is_empty()) else {
            return Err("a size is expected: bytes, or a number with K, M, G or T".to_owned());
        };
        // A number too large for 64 bits is out of the range, too.
        let number = digits.parse().unwrap_or(u64::MAX);
        if shift == 0 {
            return Self::from_plain(number);
        }
        Self::new(number.saturating_mul(1 << shift))
    }
}

impl fmt::Display for Memory {
    /// The shortest text without loss: `512M`, `4G`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        let unit = units
            .into_iter()
            .find(|(shift, _)| self.0.is_multiple_of(1 << shift));
        let (shift, letter) = unit.unwrap_or((0, ""));
        write!(f, "{}{letter}", self.bytes() >> shift)
    }
}

impl Serialize for Memory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parsed = match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(number) => Self::from_plain(number),
            NumberOrText::Text(text) => text.parse(),
        };
        parsed.map_err(de::Error::custom)
    }
}

impl JsonSchema for Memory {
    fn schema_name() -> Cow<'static, str> {
        "Memory".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": MIN_MEMORY, "maximum": MAX_MEMORY, "multipleOf": PAGE_SIZE },
                { "type": "string", "pattern": "^[0-9]+[KkMmGgTt]?$" }
            ]
        })
    }
}

/// A virtio device type (virtio 1.2, section 5): a name that the monitor knows, or a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceType(String);

impl DeviceType {
    /// Whether it is a file system, which has a tag.
    pub(super) fn is_fs(&self) -> bool {
        ["fs", "26"].contains(&self.0.as_str())
    }

    /// Whether it is a disk.
    pub(crate) fn is_block(&self) -> bool {
        ["blk", "2"].contains(&self.0.as_str())
    }

    /// Whether it is a network card.
    pub(crate) fn is_net(&self) -> bool {
        ["net", "1"].contains(&self.0.as_str())
    }
}

impl FromStr for DeviceType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = || text.parse::<u16>().ok();
        match TYPES.contains(&text) || number().is_some_and(|number| (1..=63).contains(&number)) {
            true => Ok(Self(text.to_owned())),
            false => Err(format!(
                "'{text}' is no virtio device type: a number from 1 to 63 is expected, or one of {}",
                TYPES.join(", ")
            )),
        }
    }
}

impl fmt::Display for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for DeviceType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.parse::<u16>() {
            Ok(number) => serializer.serialize_u16(number),
            Err(_) => serializer.serialize_str(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for DeviceType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(number) => number.to_string(),
            NumberOrText::Text(text) => text,
        };
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for DeviceType {
    fn schema_name() -> Cow<'static, str> {
        "DeviceType".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": 1, "maximum": 63 },
                { "type": "string", "enum": TYPES }
            ]
        })
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a whole number or a text is expected")]
enum NumberOrText {
    Number(u64),
    Text(String),
}

/// Checks a guest's name. Its folder is beside the network helper's files in the runtime folder.
pub(crate) fn guest_name(text: &str) -> Result<String, String> {
    if ["net-helper", "net-helper.sock"].contains(&text) {
        return Err(format!(
            "'{text}' is the network helper's: choose another name"
        ));
    }
    file_name(text)
}

/// Checks a network's name.
pub(crate) fn network_name(text: &str) -> Result<String, String> {
    file_name(text)
}

/// Checks that a name can be that of a file.
fn file_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let first = |c: char| c.is_ascii_alphanumeric();
    if text.len() <= 64 && text.starts_with(first) && text.chars().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "'{text}' is no name: 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
    ))
}

/// `vda`, …, `vdz`, `vdaa`, as Linux names the disks in the guest.
pub(crate) fn disk_target(index: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = index;
    loop {
        letters.push(b'a' + u8::try_from(rest % 26).unwrap_or(0));
        match rest / 26 {
            0 => break,
            more => rest = more - 1,
        }
    }
    letters.reverse();
    format!("vd{}", String::from_utf8_lossy(&letters))
}

pub(super) fn guest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    guest_name(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

pub(super) fn network<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    network_name(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

pub(super) fn cpus<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let number = i64::deserialize(deserializer)?;
    let number = u8::try_from(number).ok().filter(|number| *number > 0);
    number.ok_or_else(|| de::Error::custom("it must be 1 to 255"))
}

/// A number from 1 to `MOST`.
pub(super) fn count<'de, D: Deserializer<'de>, const MOST: u16>(
    deserializer: D,
) -> Result<u16, D::Error> {
    let number = i64::deserialize(deserializer)?;
    let number = u16::try_from(number).ok();
    number
        .filter(|number| (1..=MOST).contains(number))
        .ok_or_else(|| de::Error::custom(format!("it must be 1 to {MOST}")))
}

pub(super) fn some_count<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u16>, D::Error> {
    count::<D, MAX_VHOST_USER_QUEUES>(deserializer).map(Some)
}

pub(super) fn disk_serial<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.len() <= SERIAL_LENGTH {
        true => Ok(Some(text)),
        false => Err(de::Error::custom(format!(
            "it has {} bytes, {SERIAL_LENGTH} are possible",
            text.len()
        ))),
    }
}

pub(super) fn target<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let letters = text.strip_prefix("vd").unwrap_or_default();
    let is_target =
        (1..=3).contains(&letters.len()) && letters.bytes().all(|byte| byte.is_ascii_lowercase());
    match is_target {
        true => Ok(Some(text)),
        false => Err(de::Error::custom(format!(
            "'{text}' is no disk name: vda, vdb and so on are"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_written_as_short_as_it_can_be() {
        for (text, shown) in [
            ("512M", "512M"),
            ("536870912", "512M"),
            ("4096m", "4G"),
            ("1025M", "1025M"),
            ("2052K", "2052K"),
            ("1T", "1T"),
        ] {
            assert_eq!(text.parse::<Memory>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn memory_that_no_guest_can_have_is_refused() {
        for wrong in ["", "G", "1Q", "-1", "+5M", "1.5G", "1GB"] {
            let error = wrong.parse::<Memory>().unwrap_err();
            assert!(error.starts_with("a size is expected"), "{wrong}: {error}");
        }
        for wrong in ["0", "1M", "33T", "99999999999999999999T"] {
            let error = wrong.parse::<Memory>().unwrap_err();
            assert!(
                error.starts_with("a guest has 2M to 32T"),
                "{wrong}: {error}"
            );
        }
        let error = "512".parse::<Memory>().unwrap_err();
        assert_eq!(error, "512 without a unit is bytes: write 512M for 512 MiB");
        let error = "536870913".parse::<Memory>().unwrap_err();
        assert!(error.contains("page size"), "{error}");
    }

    #[test]
    fn disks_are_named_as_the_guest_names_them() {
        let names: Vec<_> = [0, 1, 25, 26, 27, 701, 702].map(disk_target).into();
        assert_eq!(
            names,
            ["vda", "vdb", "vdz", "vdaa", "vdab", "vdzz", "vdaaa"]
        );
    }

    #[test]
    fn a_device_type_is_one_of_virtios() {
        for good in ["fs", "blk", "26", "63"] {
            assert_eq!(good.parse::<DeviceType>().unwrap().to_string(), good);
        }
        for wrong in ["", "0", "64", "usb", "-1"] {
            assert!(wrong.parse::<DeviceType>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_is_that_of_a_file_and_not_the_helpers() {
        assert!(network_name("../x").is_err());
        for taken in ["net-helper", "net-helper.sock"] {
            let error = guest_name(taken).unwrap_err();
            assert!(error.contains("the network helper's"), "{error}");
        }
        assert!(guest_name("net-helper2").is_ok());
        assert!(network_name("-x").is_err());
        assert!(network_name("").is_err());
    }
}
