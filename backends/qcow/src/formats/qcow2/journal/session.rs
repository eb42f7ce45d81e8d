//! The session that keeps a journal, as the image's header records it, so that the image is never opened without the
//! journal it needs.
//!
//! ```text
//! extension "BHJL":  session, boot id (2), birth and inode of the image, each of 8 bytes in big-endian order;
//!                    then the journal's name
//! ```
//!
//! The extension is valid only if the upper 16 autoclear bits equal the upper bits of the session: a program that opens
//! the image for writing and does not know these bits must clear them first, as the format demands. A copy of the image
//! has the extension, too, but another time of birth and inode.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind};
use crate::formats::qcow2::journal::progress::Stale;
use crate::formats::qcow2::layout::big_endian::be64;
use crate::formats::qcow2::layout::extension::kind;
use crate::formats::qcow2::layout::feature;
use crate::formats::qcow2::layout::header::{Header, place};

const WORDS: usize = 5;

/// A session: one time that a process has an image open for writing and keeps a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) number: u64,
    pub(crate) boot: [u64; 2],
    /// See [`super::file::identity`].
    pub(crate) image: [u64; 2],
    /// The path of its journal; empty if the header has no room for it.
    pub(crate) journal: PathBuf,
}

impl Session {
    /// The session in an image's header, if it has not ended.
    pub(crate) fn of(header: &Header) -> Option<Self> {
        let data = header.extension(kind::JOURNAL)?;
        let path = data.get(WORDS * 8..)?;
        let word = |index: usize| be64(data, index * 8);
        let session = Self {
            number: word(0),
            boot: [word(1), word(2)],
            image: [word(3), word(4)],
            journal: std::ffi::OsString::from_vec(path.to_vec()).into(),
        };
        let bits = header.autoclear & feature::JOURNAL;
        (bits != 0 && session.number & feature::JOURNAL == bits).then_some(session)
    }

    /// The header with this session; `None` if there is no room for it.
    pub(crate) fn begin(&self, header: &Header) -> Option<Header> {
        let words = [
            self.number,
            self.boot[0],
            self.boot[1],
            self.image[0],
            self.image[1],
        ];
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        [self.journal.as_os_str(), OsStr::new("")]
            .iter()
            .map(|path| {
                let mut header = header.clone();
                header.autoclear =
                    header.autoclear & feature::AUTOCLEAR_KNOWN | self.number & feature::JOURNAL;
                let data = [&words[..], path.as_bytes()].concat();
                header.set_extension(kind::JOURNAL, Some(data));
                header
            })
            .find(place::fits_twice)
    }

    /// The name under which its journal was created.
    pub(crate) fn journal_name(&self) -> Option<&str> {
        self.journal.file_name()?.to_str()
    }

    /// The error of an image whose session has not ended and whose journal was not found. `opened` identifies the file
    /// that was opened.
    pub(crate) fn lost(&self, opened: [u64; 2]) -> Error {
        let shown = shown(&self.journal);
        let why = match self.image == opened {
            true => format!(
                "what was written since the last flush is in the journal {shown}, which is not in the folder of the image any more: put it back there, unless this is an earlier copy of the image, made while it was in use"
            ),
            false => format!(
                "it is a copy of an image in use; what was written to that one since the last flush is in the journal {shown}: copy the image when it is closed"
            ),
        };
        Error::corrupt(format!("{why}, or {GO_ON}"))
    }

    /// The error of an image or a journal that is not as the killed process left it.
    pub(crate) fn stale(&self, stale: Stale, journal: &Path) -> Error {
        let journal = journal.display();
        let why = match stale {
            Stale::Image => format!(
                "it is a copy of an image in use that was put in the place of that image; what was written to it since is in the journal {journal}: copy the image when it is closed"
            ),
            Stale::Journal => format!(
                "what was written since the last flush is not all in the journal {journal}, which is a copy made before: put the image's own there"
            ),
            Stale::Length { was, is } => {
                return Error::new(
                    ErrorKind::Shortened,
                    format!(
                        "somebody else made the image shorter while it was in use: of {was} bytes, {is} are left; put back what is missing or, where zeroes will do in its place, make it as long again, by truncate -s {was}; or, to do without what is missing and what was not flushed, remove {journal} and {GO_ON}"
                    ),
                );
            }
        };
        Error::corrupt(format!("{why}, or {GO_ON}"))
    }
}

/// How to do without a journal.
pub(crate) const GO_ON: &str = "go on without, by image-tool check -r all";

/// Removes the session, which has ended.
pub(crate) fn end(header: &mut Header) {
    header.autoclear &= !feature::JOURNAL;
    header.set_extension(kind::JOURNAL, None);
}

/// Whether the header has a session, ended or not.
pub(crate) fn is_in(header: &Header) -> bool {
    header.autoclear & feature::JOURNAL != 0 || header.extension(kind::JOURNAL).is_some()
}

/// A path that an image names, without control characters.
fn shown(path: &Path) -> String {
    match path.as_os_str().is_empty() {
        true => "NAME.bulkhead-journal".to_owned(),
        false => (path.to_string_lossy().chars())
            .map(|char| if char.is_control() { '\u{fffd}' } else { char })
            .collect(),
    }
}
