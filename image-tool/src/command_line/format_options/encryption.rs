//! The `encrypt.*` options, as far as they need no encryption: an empty `aes` image has no data to encrypt, and
//! `measure` only needs the length of a LUKS header.

use anyhow::{Result, anyhow, bail, ensure};

use super::FormatOptions;

/// The encryption of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encryption {
    Aes,
    Luks,
}

/// The encryption that the options ask for.
pub(crate) fn encryption(options: &FormatOptions) -> Result<Option<Encryption>> {
    let old = options.boolean("encryption").unwrap_or(false);
    Ok(match options.text("encrypt.format") {
        Some(_) if old => {
            bail!("'encrypt.format' and its alias 'encryption' can't be used at the same time")
        }
        None if old => Some(Encryption::Aes),
        Some("aes") => Some(Encryption::Aes),
        Some("luks") => Some(Encryption::Luks),
        Some(other) => bail!("Parameter 'format' does not accept value '{other}'"),
        None if options.names().any(|name| name.starts_with("encrypt.")) => {
            bail!("Parameter 'encrypt.format' is missing")
        }
        None => None,
    })
}

/// The error for an image that would have to be encrypted.
pub(crate) fn not_encrypting(options: &FormatOptions) -> anyhow::Error {
    let asks = |name: &&str| name.starts_with("encrypt") && options.boolean(name) != Some(false);
    let name = options.names().find(asks).unwrap_or("encryption");
    anyhow!("Encrypted images are not supported (option '{name}')")
}

/// Refuses a key secret that is not defined.
pub(crate) fn check_secret(options: &FormatOptions, secrets: &[String]) -> Result<()> {
    let id = options
        .text("encrypt.key-secret")
        .ok_or_else(|| anyhow!("Parameter 'encrypt.key-secret' is required for cipher"))?;
    ensure!(
        secrets.iter().any(|secret| secret == id),
        "No secret with id '{id}'"
    );
    Ok(())
}

/// Bytes of a LUKS 1 header with its eight key slots: each holds the key, in 4000 stripes.
pub(crate) fn luks_header_len(options: &FormatOptions) -> Result<u64> {
    const HEADER: u64 = 4096;
    const SLOTS: u64 = 8;
    const STRIPES: u64 = 4000;
    let cipher = options.text("encrypt.cipher-alg").unwrap_or("aes-256");
    let key = match cipher {
        "des" => 8,
        "aes-128" | "cast5-128" | "serpent-128" | "twofish-128" | "sm4" => 16,
        "aes-192" | "serpent-192" | "twofish-192" | "3des" => 24,
        "aes-256" | "serpent-256" | "twofish-256" => 32,
        other => bail!("Parameter 'cipher-alg' does not accept value '{other}'"),
    };
    let keys = match options.text("encrypt.cipher-mode").unwrap_or("xts") {
        "xts" => 2,
        "ecb" | "cbc" | "ctr" => 1,
        other => bail!("Parameter 'cipher-mode' does not accept value '{other}'"),
    };
    Ok(HEADER + SLOTS * (key * keys * STRIPES).next_multiple_of(HEADER))
}
