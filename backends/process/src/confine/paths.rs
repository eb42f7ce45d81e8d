//! Landlock: the files a process may still open, and no TCP, no signals to and no abstract sockets of others.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope,
};

use super::ConfineError;

/// The newest rights asked for; a kernel that knows fewer enforces those.
const NEWEST: ABI = ABI::V6;

pub(super) fn restrict(
    read: &[PathBuf],
    write: &[PathBuf],
    remove: &[PathBuf],
) -> Result<(), ConfineError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .map_err(refused)?;
    let readable = AccessFs::ReadFile | AccessFs::ReadDir;
    for path in read {
        rules = rule(rules, path, readable)?;
    }
    for path in write {
        rules = rule(rules, path, readable | AccessFs::from_write(NEWEST))?;
    }
    for folder in remove {
        rules = rule(rules, folder, AccessFs::RemoveFile.into())?;
    }
    rules.restrict_self().map(drop).map_err(refused)
}

fn rule(
    rules: RulesetCreated,
    path: &Path,
    wanted: BitFlags<AccessFs>,
) -> Result<RulesetCreated, ConfineError> {
    let opened = PathFd::new(path)
        .map_err(|error| ConfineError::Paths(format!("{}: {error}", path.display())))?;
    let allowed = if path.is_dir() {
        wanted
    } else {
        wanted & AccessFs::from_file(NEWEST)
    };
    rules
        .add_rule(PathBeneath::new(opened, allowed))
        .map_err(refused)
}

fn refused(error: impl std::fmt::Display) -> ConfineError {
    ConfineError::Paths(error.to_string())
}
