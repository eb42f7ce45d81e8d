//! Errors of the library and of the system in qemu-img's words, which scripts match.

use std::io;
use std::path::Path;

use qcow::{Denied, ErrorKind, FileKind, TableFault};

/// The system's message for an error, without its number.
pub(crate) fn describe_os(error: &io::Error) -> String {
    without_number(&error.to_string())
}

/// The message of an error of the library, without the image's name in front, which the caller adds.
pub(crate) fn describe(error: &qcow::Error, image: &Path) -> String {
    match error.denied() {
        Some(Denied::Lock(file, lock)) => return locked(file, lock),
        Some(Denied::Open(file)) => return cannot("open", file, error),
        Some(Denied::Create(file)) => return cannot("create", file, error),
        Some(Denied::Type {
            file,
            kind,
            named_by,
        }) => return wrong_type(file, *kind, named_by.as_deref()),
        _ => {}
    }
    let text = error.to_string();
    let own_name = format!("{}: ", image.display());
    let text = text.strip_prefix(&own_name).unwrap_or(&text);
    if error.kind() == ErrorKind::NotThisFormat {
        return capitalised(text);
    }
    without_number(text)
}

/// QEMU's message for a file that cannot be opened or created.
fn cannot(verb: &str, file: &Path, error: &qcow::Error) -> String {
    let number = error.raw_os_error().unwrap_or(libc::EIO);
    let why = describe_os(&io::Error::from_raw_os_error(number));
    format!("Could not {verb} '{}': {why}", file.display())
}

/// QEMU's message for a file that another process uses.
fn locked(file: &Path, lock: &str) -> String {
    let file = file.display();
    format!("Failed to get {lock} lock\nIs another process using the image [{file}]?")
}

/// QEMU's message for a file that cannot hold an image, followed by the type and the image that records it.
fn wrong_type(file: &Path, kind: FileKind, named_by: Option<&Path>) -> String {
    let file = file.display();
    let text = format!("'file' driver requires '{file}' to be a regular file");
    match (kind, named_by) {
        (FileKind::Directory, None) => text,
        (_, None) => format!("{text}: it is {kind}"),
        (_, Some(image)) => format!("{text}: it is {kind}, named by '{}'", image.display()),
    }
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map(|first| first.to_uppercase().chain(characters).collect())
        .unwrap_or_default()
}

/// The system's message for an error of the library, as in `error while …: No space left on device`.
pub(crate) fn cause(error: &qcow::Error, image: &Path) -> String {
    match (error.raw_os_error(), error.kind()) {
        (Some(number), _) => describe_os(&io::Error::from_raw_os_error(number)),
        (None, ErrorKind::Unsupported) => describe_os(&io::Error::from_raw_os_error(libc::ENOTSUP)),
        (None, _) => describe(error, image),
    }
}

/// For a snapshot's damaged L1 table, the library's and the system's message: QEMU prints both.
pub(crate) fn snapshot_l1(error: &qcow::Error, image: &Path) -> Option<(String, String)> {
    let number = match error.kind() {
        ErrorKind::SnapshotL1(TableFault::TooLarge) => libc::EFBIG,
        ErrorKind::SnapshotL1(TableFault::Misplaced) => libc::EINVAL,
        _ => return None,
    };
    let why = describe_os(&io::Error::from_raw_os_error(number));
    Some((describe(error, image), why))
}

fn without_number(text: &str) -> String {
    match text.rfind(" (os error ") {
        Some(at) if text.ends_with(')') => text.get(..at).unwrap_or(text).to_owned(),
        _ => text.to_owned(),
    }
}
