//! `snapshot`: lists and changes the internal snapshots of an image.

use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use clap::Command;
use qcow::{ErrorKind, Image};

use crate::command_line::getopt::Matches;
use crate::command_line::manual::{DONE_OR_FAILED, Manual};
use crate::command_line::options::{self, flag, value};
use crate::confine;
use crate::open::{self, Opening};
use crate::output;
use crate::output::errors::{cause, snapshot_l1};
use crate::output::report::{self, Usage};
use crate::output::snapshot_list::{self, LocalTime};
use crate::verbs::close;

pub(crate) const NAME: &str = "snapshot";

pub(super) const MANUAL: Manual = Manual {
    about: "List, create, apply or delete the snapshots in a qcow2 image",
    description: "Internal snapshots keep earlier states of the disk in the same file. The image must not be in \
        use.",
    statuses: DONE_OR_FAILED,
    examples: &[
        (
            "Keep the present state",
            "image-tool snapshot -f qcow2 -c before-test disk.qcow2",
        ),
        (
            "List the snapshots",
            "image-tool snapshot -f qcow2 -l disk.qcow2",
        ),
        (
            "Return to an earlier state",
            "image-tool snapshot -f qcow2 -a before-upgrade disk.qcow2",
        ),
        (
            "Delete a snapshot",
            "image-tool snapshot -f qcow2 -d before-test disk.qcow2",
        ),
    ],
};

pub(crate) fn command() -> Command {
    options::command(NAME, &MANUAL)
        .arg(options::quiet())
        .arg(options::format())
        .arg(options::image_opts())
        .arg(options::force_share())
        .arg(options::object())
        .arg(flag(
            "list",
            'l',
            "list the snapshots (this is the default)",
        ))
        .arg(value(
            "create",
            'c',
            "SNAPSHOT",
            "store the present state under this name",
        ))
        .arg(value(
            "apply",
            'a',
            "SNAPSHOT",
            "replace the disk with this snapshot",
        ))
        .arg(value("delete", 'd', "SNAPSHOT", "delete this snapshot"))
        .arg(options::operand("FILENAME", "the image"))
}

/// The action, with the name of the snapshot.
enum Action {
    List,
    Create(String),
    Apply(String),
    Delete(String),
}

impl Action {
    fn of(matches: &Matches) -> Result<Self> {
        let mut actions = matches.all().filter_map(|(option, value)| {
            let name = value.to_string_lossy().into_owned();
            match option {
                "list" => Some(Self::List),
                "create" => Some(Self::Create(name)),
                "apply" => Some(Self::Apply(name)),
                "delete" => Some(Self::Delete(name)),
                _ => None,
            }
        });
        match (actions.next(), actions.next()) {
            (None, _) => Ok(Self::List),
            (Some(only), None) => Ok(only),
            (Some(_), Some(_)) => Err(Usage::of(NAME, "Cannot mix '-l', '-a', '-c', '-d'")),
        }
    }
}

pub(crate) fn run(matches: &Matches) -> Result<ExitCode> {
    let action = Action::of(matches)?;
    options::secrets(matches)?;
    let name = options::one_image(NAME, matches)?;
    let source = options::source(matches, name)?;
    let writable = !matches!(action, Action::List);
    let share = matches.flag("force-share");
    if writable && share {
        bail!(
            "Could not open '{}': force-share=on can only be used with read-only images",
            source.text
        );
    }
    let local = LocalTime::new();
    let opened = open::open(
        &source,
        &Opening {
            writable,
            share,
            ..Opening::default()
        },
    )?;
    confine::enter(&[]);
    match &action {
        Action::List => list(&opened.image, &local)?,
        Action::Create(name) => create(&opened.image, name)?,
        Action::Apply(name) => apply(&opened.image, name)?,
        Action::Delete(name) => delete(&opened.image, name)?,
    }
    close(opened)?;
    Ok(ExitCode::SUCCESS)
}

fn list(image: &Image, local: &LocalTime) -> Result<()> {
    let snapshots = image
        .snapshots()
        .map_err(|error| anyhow!("{}", cause(&error, image.path())))?;
    if !snapshots.is_empty() {
        output::line(&format!(
            "Snapshot list:\n{}",
            snapshot_list::table(&snapshots, local).trim_end()
        ));
    }
    Ok(())
}

fn create(image: &Image, name: &str) -> Result<()> {
    let failed = |why: &str| anyhow!("Could not create snapshot '{name}': {why}");
    if !image.format().has_snapshots() {
        return Err(failed("Operation not supported"));
    }
    // QEMU's limit of names.
    let kept: String = name
        .char_indices()
        .take_while(|(at, c)| at + c.len_utf8() < 256)
        .map(|(_, c)| c)
        .collect();
    image
        .snapshot_create(&kept)
        .map_err(|error| match error.kind() {
            ErrorKind::TooLarge => failed("File too large"),
            ErrorKind::InvalidInput => failed("Invalid argument"),
            _ => failed(&cause(&error, image.path())),
        })
}

fn apply(image: &Image, name: &str) -> Result<()> {
    let failed = |why: &str| anyhow!("Could not apply snapshot '{name}': {why}");
    if !image.format().has_snapshots() {
        return Err(failed("Block driver does not support snapshots"));
    }
    // Applying a snapshot would make the bitmaps wrong.
    let qcow2 = open::info(image)?.qcow2;
    if qcow2
        .as_ref()
        .is_some_and(|qcow2| !qcow2.bitmaps.is_empty())
    {
        return Err(failed("Device has active dirty bitmaps"));
    }
    if qcow2.is_some_and(|qcow2| qcow2.data_file.is_some()) {
        return Err(failed("Failed to load snapshot: Operation not supported"));
    }
    image
        .snapshot_apply(name)
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => failed("Failed to load snapshot: No such file or directory"),
            _ => match snapshot_l1(&error, image.path()) {
                Some((what, why)) => {
                    report::error(what);
                    failed(&format!("Failed to load snapshot: {why}"))
                }
                None => failed(&cause(&error, image.path())),
            },
        })
}

fn delete(image: &Image, name: &str) -> Result<()> {
    let failed = |why: &str| anyhow!("Could not delete snapshot '{name}': {why}");
    let snapshots = image
        .snapshots()
        .map_err(|error| failed(&cause(&error, image.path())))?;
    // As in qemu-img, only by name, not by id.
    let found = snapshots.iter().find(|snapshot| snapshot.name == name);
    let id = &found.ok_or_else(|| failed("snapshot not found"))?.id;
    image
        .snapshot_delete(id)
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => failed("snapshot not found"),
            _ => failed(&cause(&error, image.path())),
        })
}
