//! Changes of the definitions, one command at a time.

use std::fs::{self, File};
use std::io;

use anyhow::{Context, anyhow, bail};

use super::unique::Taken;
use super::{Store, Stored, file, lock};
use crate::guest::Definition;
use crate::guest::definition::{Text, guest_name};

/// The right to change the definitions, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Changes<'a> {
    store: &'a Store,
    _lock: File,
}

impl Store {
    /// Waits until no other command changes definitions.
    ///
    /// # Errors
    /// When the folder cannot be changed, or another command takes too long.
    pub(crate) fn change(&self) -> anyhow::Result<Changes<'_>> {
        let folder_mode = if self.is_system { 0o755 } else { 0o700 };
        let lock = lock::take(&self.folder, folder_mode)?;
        Ok(Changes {
            store: self,
            _lock: lock,
        })
    }

    /// Checks that no other definition, and none of `more`, has the UUID or a MAC address of this one.
    ///
    /// # Errors
    /// When one has, or the folder cannot be read.
    pub(crate) fn check_unique<'a>(
        &self,
        guest: &Definition,
        more: impl IntoIterator<Item = &'a Definition>,
    ) -> anyhow::Result<()> {
        let mut taken = self.taken(&guest.name)?;
        let others = more.into_iter().filter(|other| other.name != guest.name);
        others.for_each(|other| taken.add(other));
        taken.check(guest)
    }

    /// What the guests have, without the one of this name and those whose files are damaged.
    fn taken(&self, without: &str) -> anyhow::Result<Taken> {
        let mut taken = Taken::default();
        for entry in self.all()? {
            if let Ok(definition) = entry.definition
                && entry.name != without
            {
                taken.add(&definition);
            }
        }
        Ok(taken)
    }
}

impl Changes<'_> {
    /// Defines a guest, or redefines the one that has the same name or runs with it: its UUID and its MAC addresses stay
    /// if the text has none. Otherwise they are made.
    ///
    /// # Errors
    /// When the UUID or a MAC address is another guest's, or the file cannot be written.
    pub(crate) fn define(
        &self,
        mut text: Text,
        given: Definition,
        running: Option<Definition>,
    ) -> anyhow::Result<Definition> {
        let path = self.store.path(&given.name)?;
        // A damaged one is replaced.
        let old = self.store.load(&given.name).ok().flatten().or(running);
        if let (Some(old), Some(uuid)) = (&old, given.uuid)
            && old.uuid() != uuid
        {
            bail!(
                "domain '{}' already exists with uuid {}",
                given.name,
                old.uuid()
            );
        }
        let taken = self.store.taken(&given.name)?;
        let mut guest = given;
        if guest.uuid.is_none() {
            let uuid = match &old {
                Some(old) => old.uuid(),
                None => taken.free_uuid()?,
            };
            guest.uuid = Some(uuid);
            text.set_uuid(uuid);
        }
        for index in 0..guest.nets.len() {
            let Some(mac) = missing_mac(&guest, index, old.as_ref(), &taken)? else {
                continue;
            };
            text.set_mac(index, mac);
            if let Some(net) = guest.nets.get_mut(index) {
                net.mac = Some(mac);
            }
        }
        taken.check(&guest)?;
        let (bytes, guest) = text.finish().map_err(|wrong| anyhow!("{wrong}"))?;
        file::replace(&path, bytes.as_bytes(), self.file_mode())?;
        Ok(guest)
    }

    /// Changes one definition.
    ///
    /// # Errors
    /// When there is none, it is damaged, the change makes it invalid, or the file cannot be written.
    pub(crate) fn update(
        &self,
        name: &str,
        change: impl FnOnce(&mut Text),
    ) -> anyhow::Result<Definition> {
        let Stored { mut text, .. } = self.stored(name)?;
        change(&mut text);
        let (bytes, guest) = text.finish().map_err(|wrong| anyhow!(wrong.why))?;
        let path = self.store.path(name)?;
        file::replace(&path, bytes.as_bytes(), self.file_mode())?;
        Ok(guest)
    }

    /// Gives a guest another name.
    ///
    /// # Errors
    /// When there is none, the new name is taken, or a file cannot be written.
    pub(crate) fn rename(&self, name: &str, new_name: &str) -> anyhow::Result<()> {
        guest_name(new_name).map_err(|wrong| anyhow!(wrong))?;
        if name == new_name {
            bail!("Can't rename domain to itself");
        }
        let new_path = self.store.path(new_name)?;
        if fs::symlink_metadata(&new_path).is_ok() {
            bail!("domain with name '{new_name}' already exists");
        }
        let Stored {
            mut text,
            definition: old,
            ..
        } = self.stored(name)?;
        text.set_name(new_name);
        // Those that depended on the name stay, too.
        text.set_uuid(old.uuid());
        for (index, mac) in old.macs().enumerate() {
            text.set_mac(index, mac);
        }
        let (bytes, _) = text.finish().map_err(|wrong| anyhow!(wrong.why))?;
        file::replace(&new_path, bytes.as_bytes(), self.file_mode())?;
        if let Err(error) = self.remove(name) {
            let _ = fs::remove_file(&new_path);
            return Err(error);
        }
        Ok(())
    }

    /// Removes a definition, damaged or not.
    ///
    /// # Errors
    /// When there is none, or it cannot be removed.
    pub(crate) fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = self.store.path(name)?;
        let shown = path.display();
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing(name)),
            removed => removed.with_context(|| format!("cannot remove {shown}"))?,
        }
        file::sync_folder(&path).with_context(|| format!("cannot remove {shown}"))
    }

    fn stored(&self, name: &str) -> anyhow::Result<Stored> {
        let stored = self.store.load_text(name)?;
        stored.ok_or_else(|| missing(name))
    }

    fn file_mode(&self) -> u32 {
        if self.store.is_system { 0o644 } else { 0o600 }
    }
}

/// The address for a card that has none: that which it has now, or one that nobody has.
fn missing_mac(
    guest: &Definition,
    index: usize,
    old: Option<&Definition>,
    taken: &Taken,
) -> anyhow::Result<Option<bulkhead_mac::MacAddr>> {
    let Some(net) = guest.nets.get(index).filter(|net| net.mac.is_none()) else {
        return Ok(None);
    };
    let is_given = |mac| guest.nets.iter().any(|net| net.mac == Some(mac));
    let old = old.and_then(|old| {
        let now = old.nets.get(index)?;
        (now.network == net.network).then(|| old.mac(now, index))
    });
    match old.filter(|mac| !is_given(*mac)) {
        Some(mac) => Ok(Some(mac)),
        None => taken.free_mac(guest).map(Some),
    }
}

fn missing(name: &str) -> anyhow::Error {
    anyhow!("failed to get domain '{name}': there is no such guest, see 'bulkhead list --all'")
}
