//! The files and images that are not complete yet: when the command ends early, staged files are removed and images
//! that are written in place are reported.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::output::report;

#[derive(Debug)]
enum Incomplete {
    /// A file under a temporary name.
    Staged(PathBuf),
    /// A target that is written in place.
    InPlace {
        path: PathBuf,
        /// The image's own header says that it is incomplete.
        is_marked: bool,
    },
}

static INCOMPLETE: Mutex<Vec<Incomplete>> = Mutex::new(Vec::new());

fn list() -> MutexGuard<'static, Vec<Incomplete>> {
    INCOMPLETE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Registers a staged file, which is removed unless it is completed.
pub(crate) fn add_staged(path: &Path) {
    list().push(Incomplete::Staged(path.to_owned()));
}

/// Registers a target whose old content is gone and whose new content is not complete.
pub(crate) fn add_in_place(path: &Path) {
    replace(&mut list(), path, false);
}

/// As [`add_in_place`], with `mark`, which writes the mark into the image and returns whether its format has one. A
/// signal handler waits until the mark is written, so that it reports what the image says.
pub(crate) fn add_marked<E>(
    path: &Path,
    mark: impl FnOnce() -> Result<bool, E>,
) -> Result<bool, E> {
    let mut list = list();
    let is_marked = mark()?;
    replace(&mut list, path, is_marked);
    Ok(is_marked)
}

/// Unregisters a file that is complete, has its own name or is removed.
pub(crate) fn remove(path: &Path) {
    remove_from(&mut list(), path);
}

/// As [`remove`], after `unmark` has cleared the mark in the image. A signal handler waits for it.
pub(crate) fn remove_marked<E>(
    path: &Path,
    unmark: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    let mut list = list();
    unmark()?;
    remove_from(&mut list, path);
    Ok(())
}

fn replace(list: &mut Vec<Incomplete>, path: &Path, is_marked: bool) {
    remove_from(list, path);
    let path = path.to_owned();
    list.push(Incomplete::InPlace { path, is_marked });
}

fn remove_from(list: &mut Vec<Incomplete>, path: &Path) {
    list.retain(|entry| match entry {
        Incomplete::Staged(other) | Incomplete::InPlace { path: other, .. } => other != path,
    });
}

/// Removes staged files and reports targets that stay incomplete, before the process ends.
pub(crate) fn clean_up() {
    for entry in list().drain(..) {
        match entry {
            Incomplete::Staged(path) => {
                // The error that ends the process is the one to report.
                let _ = fs::remove_file(path);
            }
            Incomplete::InPlace {
                path,
                is_marked: false,
            } => report::error(format_args!("'{}' is incomplete.", path.display())),
            Incomplete::InPlace {
                path,
                is_marked: true,
            } => report::error(format_args!(
                "'{}' is incomplete, and marked corrupt until '{} check -r all' accepts it as it is.",
                path.display(),
                report::program()
            )),
        }
    }
}
