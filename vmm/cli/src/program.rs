//! Where Bulkhead's other programs are: beside this one, or on `$PATH`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The path to start `name` by, and what to call it when the command is shown: its bare name where a shell would find the same file.
pub(crate) fn find(name: &str) -> (PathBuf, OsString) {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|own| Some(own.parent()?.join(name)))
        .filter(|path| path.is_file());
    let on_path = std::env::var_os("PATH").and_then(|path| search(&path, name));
    match (beside, on_path) {
        (Some(beside), Some(found)) if same(&beside, &found) => (beside, name.into()),
        (Some(beside), _) => {
            let shown = crate::shell::quote(beside.as_os_str());
            (beside, shown)
        }
        (None, _) => (PathBuf::from(name), name.into()),
    }
}

fn search(path: &OsStr, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

fn same(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
