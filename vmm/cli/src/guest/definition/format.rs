//! An image format in a definition: its name.

use qcow_format::Format;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serializer, de};
use serde_json::json;

pub(super) fn serialize<S: Serializer>(format: &Format, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(format)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Format, D::Error> {
    let name = String::deserialize(deserializer)?;
    name.parse()
        .map_err(|_| de::Error::unknown_variant(&name, &Format::NAMES))
}

pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
    let names = Format::ALL.map(|format| {
        json!({ "type": "string", "const": format.name(), "description": format.summary() })
    });
    json_schema!({ "oneOf": names })
}

#[cfg(test)]
mod tests {
    use crate::guest::definition::Disk;

    #[test]
    fn a_format_is_one_of_the_list() {
        let disk = |format| {
            let text = format!(r#"{{"path": "/d", "format": "{format}"}}"#);
            serde_json::from_str::<Disk>(&text)
        };
        let written = serde_json::to_value(disk("qcow2").unwrap()).unwrap();
        assert_eq!(written["format"], "qcow2");
        let error = disk("vmdk").unwrap_err().to_string();
        assert!(
            error.contains("unknown variant `vmdk`, expected `raw` or `qcow2`"),
            "{error}"
        );
    }
}
