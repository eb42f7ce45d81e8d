//! Landlock: the files a process may still open, and no TCP, no signals to and no abstract sockets of others.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::ConfineError;

/// The newest rights asked for; a kernel that knows fewer enforces those.
const NEWEST: ABI = ABI::V6;

#[derive(Debug)]
/// Rules that are made while paths can be opened, and put in place later.
pub(super) struct Rules(RulesetCreated);

impl Rules {
    pub(super) fn new(
        read: &[PathBuf],
        write: &[PathBuf],
        remove: &[PathBuf],
    ) -> Result<Self, ConfineError> {
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))
            .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
            .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
            .and_then(Ruleset::create)
            .map_err(refused)?
            // The process has it already.
            .no_new_privs(false);
        let readable = AccessFs::ReadFile | AccessFs::ReadDir;
        for path in read {
            rules = rule(rules, path, readable)?;
        }
        for path in write {
            rules = rule(rules, path, readable | AccessFs::from_write(NEWEST))?;
        }
        for folder in remove {
            rules = rule(rules, folder, AccessFs::RemoveFile | AccessFs::RemoveDir)?;
        }
        Ok(Self(rules))
    }

    /// Puts them in place. Whether the kernel has Landlock.
    pub(super) fn restrict(self) -> Result<bool, ConfineError> {
        let status = self.0.restrict_self().map_err(refused)?;
        Ok(status.ruleset != RulesetStatus::NotEnforced)
    }
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
