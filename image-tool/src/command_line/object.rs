//! `--object`: definitions of secrets are checked as far as that is possible without reading their content; other
//! objects are refused.

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use super::keyval;
use super::source::operand::json;
use crate::output::report::Hinted;

/// Members of a secret, except its type and id.
const OF_SECRETS: [&str; 5] = ["format", "keyid", "iv", "data", "file"];
/// Members of a secret in the kernel's keyring.
const OF_KEYS: [&str; 4] = ["format", "keyid", "iv", "serial"];

/// The ids of the secrets that are defined.
pub(crate) fn secrets(definitions: &[String]) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for definition in definitions {
        let id = id_of(&members(definition)?, &ids)?;
        ids.push(id);
    }
    Ok(ids)
}

/// The members of a definition, which is an option list or JSON.
fn members(definition: &str) -> Result<Map<String, Value>> {
    if definition.starts_with('{') {
        return match json(definition)? {
            Value::Object(members) => Ok(members),
            _ => bail!("Invalid JSON object given"),
        };
    }
    keyval::split(definition, Some("qom-type"))
        .into_iter()
        .map(|item| match item.value {
            Some(value) => Ok((item.key, Value::String(value))),
            None => Err(anyhow!("Expected '=' after parameter '{}'", item.key)),
        })
        .collect()
}

/// Checks a secret's members and returns its id; `known` are the ids defined before it.
fn id_of(members: &Map<String, Value>, known: &[String]) -> Result<String> {
    let kind = text(members, "qom-type")?.ok_or_else(|| missing("qom-type"))?;
    let allowed: &[&str] = match kind {
        "secret" => &OF_SECRETS,
        "secret_keyring" => &OF_KEYS,
        _ => bail!("Parameter 'qom-type' does not accept value '{kind}'"),
    };
    let id = text(members, "id")?.ok_or_else(|| missing("id"))?;
    if let Some(format) = text(members, "format")? {
        ensure!(
            matches!(format, "raw" | "base64"),
            "Parameter 'format' does not accept value '{format}'"
        );
    }
    let key = text(members, "keyid")?;
    let iv = text(members, "iv")?;
    let (data, file) = match kind {
        "secret" => (text(members, "data")?, text(members, "file")?),
        _ => {
            ensure!(members.contains_key("serial"), missing("serial"));
            (Some(""), None)
        }
    };
    let other = members
        .keys()
        .find(|name| !matches!(&***name, "qom-type" | "id") && !allowed.contains(&&***name));
    if let Some(name) = other {
        bail!("Parameter '{name}' is unexpected");
    }
    check_id(id)?;
    ensure!(
        !known.iter().any(|other| other == id),
        "attempt to add duplicate property '{id}' to object (type 'container')"
    );
    match (data, file) {
        (Some(_), Some(_)) => bail!("'file' and 'data' are mutually exclusive"),
        (None, None) => bail!("Either 'file' or 'data' must be provided"),
        _ => {}
    }
    if let Some(key) = key {
        ensure!(
            known.iter().any(|other| other == key),
            "No secret with id '{key}'"
        );
        ensure!(iv.is_some(), "IV is required to decrypt secret");
    }
    Ok(id.to_owned())
}

fn missing(name: &str) -> anyhow::Error {
    anyhow!("Parameter '{name}' is missing")
}

fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>> {
    match members.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => bail!("Invalid parameter type for '{name}', expected: string"),
    }
}

fn check_id(id: &str) -> Result<()> {
    let mut letters = id.bytes();
    let well_formed = letters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic())
        && letters.all(|next| next.is_ascii_alphanumeric() || b"-._".contains(&next));
    if well_formed {
        return Ok(());
    }
    Err(Hinted {
        message: "Parameter 'id' expects an identifier".to_owned(),
        hint: "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
            .to_owned(),
    }
    .into())
}
