//! `qcow-format`: the list of image formats: their names, and what an image of each can have.
//!
//! It may touch nothing, and must not depend on anything: programs that only pass a format's name on use it, too. What
//! reads and writes the formats is `qcow`.

#![forbid(unsafe_code)]

use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// The format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// The file is the disk.
    Raw,
    /// qcow2, versions 2 and 3.
    Qcow2,
}

/// What is known of a format without code of its own.
struct Properties {
    name: &'static str,
    summary: &'static str,
    /// The endings of file names that declare it.
    endings: &'static [&'static str],
    capabilities: Capabilities,
}

/// What images of a format can have; see the methods of [`Format`].
struct Capabilities {
    metadata: bool,
    backing: bool,
    snapshots: bool,
    bitmaps: bool,
    compression: bool,
    checks: bool,
    amend: bool,
    journal: bool,
}

const RAW: Properties = Properties {
    name: "raw",
    summary: "The file is the disk",
    endings: &["raw", "img"],
    capabilities: Capabilities {
        metadata: false,
        backing: false,
        snapshots: false,
        bitmaps: false,
        compression: false,
        checks: false,
        amend: false,
        journal: false,
    },
};

const QCOW2: Properties = Properties {
    name: "qcow2",
    summary: "QEMU's format, with its backing files",
    endings: &["qcow2"],
    capabilities: Capabilities {
        metadata: true,
        backing: true,
        snapshots: true,
        bitmaps: true,
        compression: true,
        checks: true,
        amend: true,
        journal: true,
    },
};

impl Format {
    /// All formats.
    pub const ALL: [Self; 2] = [Self::Raw, Self::Qcow2];

    /// Their names.
    pub const NAMES: [&'static str; Self::ALL.len()] = {
        let mut names = [""; Self::ALL.len()];
        let mut index = 0;
        while index < names.len() {
            names[index] = Self::ALL[index].name();
            index += 1;
        }
        names
    };

    const fn properties(self) -> &'static Properties {
        match self {
            Self::Raw => &RAW,
            Self::Qcow2 => &QCOW2,
        }
    }

    /// The name qemu-img uses.
    pub const fn name(self) -> &'static str {
        self.properties().name
    }

    /// What it is, for help texts.
    pub const fn summary(self) -> &'static str {
        self.properties().summary
    }

    /// The format that the ending of a file's name declares. The content does not count, because a guest can write it.
    pub fn by_ending(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?;
        Self::ALL
            .into_iter()
            .find(|format| format.properties().endings.contains(&ending))
    }

    /// Whether the file holds more than the disk: an image is then parsed when it is opened, can be recognized by its
    /// first bytes, has a size of its own, and can grow within its file.
    pub const fn has_metadata(self) -> bool {
        self.properties().capabilities.metadata
    }

    /// Whether an image can name a backing file.
    pub const fn has_backing(self) -> bool {
        self.properties().capabilities.backing
    }

    /// Whether an image can have internal snapshots.
    pub const fn has_snapshots(self) -> bool {
        self.properties().capabilities.snapshots
    }

    /// Whether an image can have persistent dirty bitmaps.
    pub const fn has_bitmaps(self) -> bool {
        self.properties().capabilities.bitmaps
    }

    /// Whether clusters can be compressed.
    pub const fn has_compression(self) -> bool {
        self.properties().capabilities.compression
    }

    /// Whether the metadata of an image can be checked.
    pub const fn has_checks(self) -> bool {
        self.properties().capabilities.checks
    }

    /// Whether the options of an image can be changed after its creation.
    pub const fn has_amend(self) -> bool {
        self.properties().capabilities.amend
    }

    /// Whether a journal can be kept beside an image.
    pub const fn has_journal(self) -> bool {
        self.properties().capabilities.journal
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is not a format's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownFormat(String);

impl fmt::Display for UnknownFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown image format '{}'", self.0)
    }
}

impl std::error::Error for UnknownFormat {}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        Self::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_is_found_by_its_name_and_by_its_endings() {
        for format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
            for ending in format.properties().endings {
                let path = Path::new("disk").with_extension(ending);
                assert_eq!(Format::by_ending(&path), Some(format), "{ending}");
            }
        }
    }

    #[test]
    fn a_name_that_declares_no_format_is_not_guessed() {
        let unknown = "vmdk".parse::<Format>().unwrap_err();
        assert_eq!(unknown.to_string(), "unknown image format 'vmdk'");
        for path in ["disk", "disk.vmdk", ".qcow2", "disk.qcow2.bak"] {
            assert_eq!(Format::by_ending(Path::new(path)), None, "{path}");
        }
    }
}
