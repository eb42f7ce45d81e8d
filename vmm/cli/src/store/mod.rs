//! The definitions on disk: a file `NAME.toml` for each guest, in a folder of the user's.
//!
//! Reading takes no lock, since a file is replaced as a whole. Changes are made one at a time, under [`Changes`].

mod changes;
mod file;
mod lock;
mod unique;

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use uuid::Uuid;

pub(crate) use file::bounded;

use crate::guest::Definition;
use crate::guest::definition::{Text, guest_name, parse};

/// Root's folder.
const SYSTEM: &str = "/etc/bulkhead/guests";
/// A user's folder, in the folder for configuration.
const USER: &str = "bulkhead/guests";
const EXTENSION: &str = "toml";

/// The folder of definitions.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    is_system: bool,
}

/// A file of the store, and what it says or what is wrong with it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) definition: anyhow::Result<Definition>,
}

/// A definition and its text.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) definition: Definition,
    pub(crate) text: Text,
    /// The bytes of the file.
    pub(crate) bytes: Vec<u8>,
}

impl Store {
    /// The store of the user that asks.
    ///
    /// # Errors
    /// When a user has no home.
    pub(crate) fn open() -> anyhow::Result<Self> {
        if rustix::process::geteuid().is_root() {
            return Ok(Self::system());
        }
        let absolute = |name: &str| {
            let path = std::env::var_os(name).map(PathBuf::from);
            path.filter(|path| path.is_absolute())
        };
        let config = absolute("XDG_CONFIG_HOME")
            .or_else(|| Some(absolute("HOME")?.join(".config")))
            .context(
                "neither XDG_CONFIG_HOME nor HOME is set to an absolute path: set one of them to a folder of your own",
            )?;
        Ok(Self {
            folder: config.join(USER),
            is_system: false,
        })
    }

    /// The store of root, which every user may read.
    pub(crate) fn system() -> Self {
        Self {
            folder: SYSTEM.into(),
            is_system: true,
        }
    }

    /// The names of all files that are definitions, or should be, in order.
    ///
    /// # Errors
    /// When the folder cannot be read. A folder that is missing has none.
    pub(crate) fn names(&self) -> anyhow::Result<Vec<String>> {
        let shown = self.folder.display();
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("cannot look into {shown}"))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot look into {shown}"))?;
            let path = PathBuf::from(entry.file_name());
            let is_hidden = path.as_os_str().as_encoded_bytes().starts_with(b".");
            if path.extension() == Some(OsStr::new(EXTENSION)) && !is_hidden {
                let name = path.file_stem().unwrap_or_default();
                names.push(name.to_string_lossy().into_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// All definitions, by name. One that is damaged does not hide the others.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn all(&self) -> anyhow::Result<Vec<Entry>> {
        let entry = |name: String| {
            let definition = match guest_name(&name) {
                // It may have been removed meanwhile.
                Ok(_) => self.load(&name).transpose()?,
                Err(wrong) => {
                    let file = self.folder.join(format!("{name}.{EXTENSION}"));
                    Err(anyhow!("{}: {wrong}", file.display()))
                }
            };
            Some(Entry { name, definition })
        };
        Ok(self.names()?.into_iter().filter_map(entry).collect())
    }

    /// The definition of a guest, if it has one.
    ///
    /// # Errors
    /// When it cannot be read, or is no valid definition: the file, the line, the column and what is wrong.
    pub(crate) fn load(&self, name: &str) -> anyhow::Result<Option<Definition>> {
        let path = self.path(name)?;
        let Some(bytes) = file::read(&path)? else {
            return Ok(None);
        };
        let definition = parse(&bytes).map_err(|wrong| anyhow!("{}: {wrong}", path.display()))?;
        check_name(&path, name, &definition)?;
        Ok(Some(definition))
    }

    /// The definition of a guest and its text, if it has one.
    ///
    /// # Errors
    /// As of [`Self::load`].
    pub(crate) fn load_text(&self, name: &str) -> anyhow::Result<Option<Stored>> {
        let path = self.path(name)?;
        let shown = path.display();
        let Some(bytes) = file::read(&path)? else {
            return Ok(None);
        };
        let (text, definition) =
            Text::parse(&bytes).map_err(|wrong| anyhow!("{shown}: {wrong}"))?;
        check_name(&path, name, &definition)?;
        Ok(Some(Stored {
            definition,
            text,
            bytes,
        }))
    }

    /// The bytes of a guest's file, whether they are a definition or not, if it has one.
    ///
    /// # Errors
    /// When it cannot be read, or is no file.
    pub(crate) fn bytes(&self, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
        file::read(&self.path(name)?)
    }

    /// The definition of the guest that a user names by its name or UUID, if there is one.
    ///
    /// # Errors
    /// When the one with this name is damaged, or the folder cannot be read.
    pub(crate) fn find(&self, words: &str) -> anyhow::Result<Option<Definition>> {
        if guest_name(words).is_ok()
            && let Some(definition) = self.load(words)?
        {
            return Ok(Some(definition));
        }
        match words.parse() {
            Ok(uuid) => self.by_uuid(uuid),
            Err(_) => Ok(None),
        }
    }

    /// The definition with this UUID, if there is one. Damaged ones are passed over.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn by_uuid(&self, uuid: Uuid) -> anyhow::Result<Option<Definition>> {
        let definitions = self
            .all()?
            .into_iter()
            .filter_map(|entry| entry.definition.ok());
        let mut found = definitions.filter(|definition| definition.uuid() == uuid);
        Ok(found.next())
    }

    /// The file of a guest.
    ///
    /// # Errors
    /// When the name is none that a guest can have.
    pub(crate) fn path(&self, name: &str) -> anyhow::Result<PathBuf> {
        let name = guest_name(name).map_err(|wrong| anyhow!(wrong))?;
        Ok(self.folder.join(format!("{name}.{EXTENSION}")))
    }
}

/// Checks that a file bears the name of its guest.
fn check_name(path: &Path, name: &str, definition: &Definition) -> anyhow::Result<()> {
    if definition.name == name {
        return Ok(());
    }
    bail!(
        "{}: the guest's name in it is '{}': make that '{name}', or rename the file",
        path.display(),
        definition.name
    )
}

#[cfg(test)]
mod tests;
