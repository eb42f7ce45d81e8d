//! What must hold within a definition besides the form of each value.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::path::Path;

use super::{Definition, Serial};

/// A rule that a definition breaks.
#[derive(Debug)]
pub(super) struct Problem {
    /// The keys that lead to the value.
    pub(super) at: Vec<Step>,
    pub(super) why: String,
}

/// A part of the way to a value.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

type Result = std::result::Result<(), Problem>;

/// Checks the rules.
pub(super) fn check(guest: &Definition) -> Result {
    for (at, text) in texts(guest) {
        if text.contains('\0') {
            return problem(at, "it has a zero character");
        }
    }
    for (at, path) in paths(guest) {
        if !path.is_absolute() {
            let why = format!("'{}' is not an absolute path", path.display());
            return problem(at, why);
        }
    }
    if guest
        .title
        .as_ref()
        .is_some_and(|title| title.contains('\n'))
    {
        return problem(vec![key("title")], "it has more than one line");
    }
    let targets = guest.disks.iter().map(|disk| disk.target.as_ref());
    unique("disks", "target", targets)?;
    unique("nets", "mac", guest.nets.iter().map(|net| net.mac))?;
    for (index, device) in guest.vhost_user.iter().enumerate() {
        if device.tag.is_some() && !device.device_type.is_fs() {
            let at = within("vhost_user", index, "tag");
            return problem(at, "only a device of the type fs has one");
        }
    }
    Ok(())
}

/// The texts that become arguments of programs.
fn texts(guest: &Definition) -> Vec<(Vec<Step>, String)> {
    let mut texts = vec![(vec![key("cmdline")], guest.cmdline.clone())];
    let mut add = |at, text: &Option<String>| texts.push((at, text.clone().unwrap_or_default()));
    for (index, disk) in guest.disks.iter().enumerate() {
        add(within("disks", index, "serial"), &disk.serial);
    }
    for (index, device) in guest.vhost_user.iter().enumerate() {
        add(within("vhost_user", index, "tag"), &device.tag);
    }
    let paths = paths(guest).into_iter();
    texts.extend(paths.map(|(at, path)| (at, path.to_string_lossy().into_owned())));
    texts
}

fn paths(guest: &Definition) -> Vec<(Vec<Step>, &Path)> {
    let mut paths = vec![(vec![key("kernel")], guest.kernel.as_path())];
    if let Some(path) = &guest.initramfs {
        paths.push((vec![key("initramfs")], path));
    }
    if let Serial::File(path) = &guest.serial {
        paths.push((vec![key("serial"), key("file")], path));
    }
    for (index, disk) in guest.disks.iter().enumerate() {
        paths.push((within("disks", index, "path"), &disk.path));
        for (folder, path) in disk.allow_path.iter().enumerate() {
            let mut at = within("disks", index, "allow_path");
            at.push(Step::Index(folder));
            paths.push((at, path));
        }
    }
    for (index, device) in guest.vhost_user.iter().enumerate() {
        paths.push((within("vhost_user", index, "socket"), &device.socket));
    }
    paths
}

/// Checks that no two elements of a list have the same value.
fn unique<T: Eq + Hash + fmt::Display>(
    list: &str,
    field: &str,
    values: impl Iterator<Item = Option<T>>,
) -> Result {
    let mut seen = HashSet::new();
    for (index, value) in values.enumerate() {
        let Some(value) = value else { continue };
        let shown = value.to_string();
        if !seen.insert(value) {
            let why = format!("'{shown}' is given twice");
            return problem(within(list, index, field), why);
        }
    }
    Ok(())
}

fn key(name: &str) -> Step {
    Step::Key(name.to_owned())
}

fn within(list: &str, index: usize, field: &str) -> Vec<Step> {
    vec![key(list), Step::Index(index), key(field)]
}

fn problem(at: Vec<Step>, why: impl Into<String>) -> Result {
    let mut shown = String::new();
    for step in &at {
        match step {
            Step::Key(key) if shown.is_empty() => shown.push_str(key),
            Step::Key(key) => shown.push_str(&format!(".{key}")),
            Step::Index(index) => shown.push_str(&format!("[{index}]")),
        }
    }
    let why = format!("{shown}: {}", why.into());
    Err(Problem { at, why })
}
