//! Finds Bulkhead's other programs: beside this one, or on `$PATH`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// A program on this host.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// The path by which it is started.
    pub(crate) path: PathBuf,
    /// The word for it in a shell's command line: its bare name, if a shell finds the same file by it.
    pub(crate) shown: OsString,
}

/// The programs that a guest consists of.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) vmm: Program,
    pub(crate) block: Program,
    pub(crate) net: Program,
    pub(crate) net_helper: Program,
}

impl Programs {
    /// Finds them on this host.
    pub(crate) fn find() -> Self {
        Self {
            vmm: Program::find("bulkhead-vmm"),
            block: Program::find("bulkhead-block"),
            net: Program::find("bulkhead-net"),
            net_helper: Program::find("bulkhead-net-helper"),
        }
    }
}

impl Program {
    fn find(name: &str) -> Self {
        let beside = std::env::current_exe()
            .ok()
            .and_then(|own| Some(own.parent()?.join(name)))
            .filter(|path| path.is_file());
        let on_path = std::env::var_os("PATH").and_then(|path| search(&path, name));
        match (beside, on_path) {
            (Some(path), Some(found)) if is_same(&path, &found) => Self {
                path,
                shown: name.into(),
            },
            (Some(path), _) => Self {
                shown: crate::shell::quote(path.as_os_str()),
                path,
            },
            (None, _) => Self::named(name),
        }
    }

    /// A program that is started by its bare name.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            path: PathBuf::from(name),
            shown: name.into(),
        }
    }
}

fn search(path: &OsStr, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

fn is_same(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
