//! Landlock: the files a process may still open, and no TCP, no signals to and no abstract sockets of others.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath,
    PathFd, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::ConfineError;
use super::namespaces::{Access, Visible};

/// The newest rights asked for; a kernel that knows fewer enforces those.
const NEWEST: ABI = ABI::V6;

/// What is allowed, and nothing else.
#[derive(Clone, Debug, Default)]
pub(super) struct Allowed {
    /// Files, and what is below folders.
    pub(super) read: Vec<PathBuf>,
    pub(super) write: Vec<PathBuf>,
    /// Folders in which files may be removed.
    pub(super) remove: Vec<PathBuf>,
    /// Programs that may be started.
    pub(super) programs: Vec<PathBuf>,
    /// TCP ports that may be bound to, and connected to.
    pub(super) bind: Vec<u16>,
    pub(super) connect: Vec<u16>,
}

impl Allowed {
    /// What may be opened is seen, and a folder in which files are removed is written to.
    pub(super) fn visible(&self) -> Vec<Visible> {
        let one = |path: &PathBuf, access| Visible {
            path: path.clone(),
            access,
        };
        let read = self.read.iter().map(|path| one(path, Access::Read));
        let write = self.write.iter().chain(&self.remove);
        read.chain(write.map(|path| one(path, Access::Write)))
            .collect()
    }
}

/// Rules that are made while paths can be opened, and put in place later.
#[derive(Debug)]
pub(super) struct Rules(RulesetCreated);

impl Rules {
    pub(super) fn new(allowed: &Allowed) -> Result<Self, ConfineError> {
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
        for path in &allowed.read {
            rules = rule(rules, path, readable)?;
        }
        for path in &allowed.write {
            rules = rule(rules, path, readable | AccessFs::from_write(NEWEST))?;
        }
        for folder in &allowed.remove {
            rules = rule(rules, folder, AccessFs::RemoveFile | AccessFs::RemoveDir)?;
        }
        for program in &allowed.programs {
            rules = rule(rules, program, AccessFs::ReadFile | AccessFs::Execute)?;
        }
        let bind = allowed.bind.iter().map(|port| (port, AccessNet::BindTcp));
        let connect = allowed.connect.iter();
        let connect = connect.map(|port| (port, AccessNet::ConnectTcp));
        for (&port, access) in bind.chain(connect) {
            rules = rules
                .add_rule(NetPort::new(port, access))
                .map_err(refused)?;
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
