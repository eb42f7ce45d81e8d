//! What a command that ends early leaves: files to remove, and targets to name because they are incomplete.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::output::report;

#[derive(Debug)]
enum Unfinished {
    /// A file under a name that is not its own.
    Staged(PathBuf),
    /// A target that is written in place, and whether the image itself says that it is incomplete.
    InPlace(PathBuf, bool),
}

static UNFINISHED: Mutex<Vec<Unfinished>> = Mutex::new(Vec::new());

fn list() -> MutexGuard<'static, Vec<Unfinished>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file of that name is to be removed unless it is finished.
pub(crate) fn staged(path: &Path) {
    list().push(Unfinished::Staged(path.to_owned()));
}

/// From now on the file of that name is neither what it was nor what it is to be.
pub(crate) fn in_place(path: &Path, is_marked: bool) {
    let mut list = list();
    retain_others(&mut list, path);
    list.push(Unfinished::InPlace(path.to_owned(), is_marked));
}

/// As [`in_place`], where `mark` has the image itself say so, and returns whether it could. A signal meanwhile waits for its end, so that
/// what is reported then is what the image says.
pub(crate) fn in_place_marked<E>(
    path: &Path,
    mark: impl FnOnce() -> Result<bool, E>,
) -> Result<bool, E> {
    let mut list = list();
    let is_marked = mark()?;
    retain_others(&mut list, path);
    list.push(Unfinished::InPlace(path.to_owned(), is_marked));
    Ok(is_marked)
}

/// As [`finished`], once `unmark` has had the image say so. A signal meanwhile waits for its end.
pub(crate) fn finished_unmarked<E>(
    path: &Path,
    unmark: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    let mut list = list();
    unmark()?;
    retain_others(&mut list, path);
    Ok(())
}

/// It has its own name, is whole or is gone.
pub(crate) fn finished(path: &Path) {
    retain_others(&mut list(), path);
}

fn retain_others(list: &mut Vec<Unfinished>, path: &Path) {
    list.retain(|entry| match entry {
        Unfinished::Staged(other) | Unfinished::InPlace(other, _) => other != path,
    });
}

/// The process is about to end: removes what can be removed, and names what stays incomplete.
pub(crate) fn abandon() {
    for entry in list().drain(..) {
        match entry {
            Unfinished::Staged(path) => {
                // What made the process end is what is reported.
                let _ = fs::remove_file(path);
            }
            Unfinished::InPlace(path, false) => {
                report::error(format_args!("'{}' is incomplete.", path.display()));
            }
            Unfinished::InPlace(path, true) => report::error(format_args!(
                "'{}' is incomplete, and marked corrupt until '{} check -r all' accepts it as it is.",
                path.display(),
                report::program()
            )),
        }
    }
}
