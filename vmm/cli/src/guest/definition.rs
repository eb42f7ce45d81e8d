//! The definition of a guest, as people write it on a command line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use bulkhead_mac::MacAddr;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::options::Options;

/// A guest.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Definition {
    /// The guest's name
    #[arg(long, value_parser = guest_name)]
    pub(crate) name: String,
    /// Number of virtual CPUs
    #[arg(long, default_value_t = 1, value_parser = cpus)]
    pub(crate) cpus: u8,
    /// Memory: bytes, or a number with K, M, G or T
    #[arg(long, default_value = "512M", value_parser = memory)]
    pub(crate) memory: String,
    /// Kernel: a bzImage or an ELF vmlinux
    #[arg(long, value_name = "PATH")]
    pub(crate) kernel: PathBuf,
    /// Initial RAM file system
    #[arg(long, value_name = "PATH")]
    pub(crate) initramfs: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, default_value = "console=ttyS0")]
    pub(crate) cmdline: String,
    #[allow(
        rustdoc::broken_intra_doc_links,
        reason = "the brackets are of the help"
    )]
    /// Disk image: PATH[,format=raw|qcow2][,readonly=on|off][,allow-path=FOLDER]…; a comma in a path is written twice.
    /// Without format=, the format is that of the ending (.raw, .img, .qcow2); the content is never looked at. The
    /// image's backing and data files must be in the image's folder or in an allowed one
    #[arg(
        long = "disk",
        value_name = "PATH[,…]",
        value_parser = OsStringValueParser::new().try_map(|text| Disk::parse(&text))
    )]
    pub(crate) disks: Vec<Disk>,
    /// Network to connect to: NETWORK[,mac=MAC]
    #[arg(long = "net", value_name = "NETWORK[,…]")]
    pub(crate) nets: Vec<Net>,
}

impl Definition {
    /// Makes all paths absolute, so that the definition means the same in every process.
    ///
    /// # Errors
    /// When the current folder is not known, or a path is empty.
    pub(crate) fn with_absolute_paths(mut self) -> anyhow::Result<Self> {
        let disks = self.disks.iter_mut();
        let disk_paths = disks.flat_map(|disk| [&mut disk.path].into_iter().chain(&mut disk.allow));
        let paths = [&mut self.kernel].into_iter().chain(&mut self.initramfs);
        for path in paths.chain(disk_paths) {
            *path = std::path::absolute(&*path)
                .with_context(|| format!("cannot tell where {} is", path.display()))?;
        }
        Ok(self)
    }
}

/// One `--disk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    pub(crate) format: String,
    pub(crate) readonly: bool,
    /// Folders, besides the image's own, in which its backing and data files may be.
    pub(crate) allow: Vec<PathBuf>,
}

/// One `--net`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Net {
    pub(crate) network: String,
    pub(crate) mac: Option<MacAddr>,
}

impl Disk {
    fn parse(text: &OsStr) -> Result<Self, String> {
        let (path, mut options) = Options::split(text.as_bytes());
        if path.is_empty() {
            return Err("no path".to_owned());
        }
        let path = PathBuf::from(OsString::from_vec(path));
        let mut format = None;
        let mut readonly = false;
        let mut allow = Vec::new();
        while let Some(given) = options.next(&["format", "readonly"], &["allow-path"])? {
            match &*given.key() {
                "format" => format = Some(given.one_of(&["raw", "qcow2"])?.to_owned()),
                "readonly" => readonly = given.switch()?,
                _ if given.value.is_empty() => return Err(given.wrong("a folder")),
                _ => allow.push(PathBuf::from(OsString::from_vec(given.value))),
            }
        }
        let format = format.or_else(|| by_name(&path)).ok_or_else(|| {
            format!(
                "the format of {} is not known: add ,format=raw or ,format=qcow2",
                path.display()
            )
        })?;
        Ok(Self {
            path,
            format,
            readonly,
            allow,
        })
    }
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (network, mut options) = Options::split(text.as_bytes());
        let network = name(&String::from_utf8_lossy(&network))?;
        let mut mac = None;
        while let Some(given) = options.next(&["mac"], &[])? {
            let text = String::from_utf8_lossy(&given.value);
            let valid = text.parse::<MacAddr>();
            mac = Some(valid.map_err(|error| format!("mac: {error}"))?);
        }
        Ok(Self { network, mac })
    }
}

/// The format that the file's name declares. The content does not count, because a guest can write it.
fn by_name(path: &Path) -> Option<String> {
    let format = match path.extension()?.to_str()? {
        "qcow2" => "qcow2",
        "raw" | "img" => "raw",
        _ => return None,
    };
    Some(format.to_owned())
}

fn cpus(text: &str) -> Result<u8, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "it must be 1 to 255".to_owned())
}

/// Checks the form of a size. `bulkhead-vmm` checks its range.
fn memory(text: &str) -> Result<String, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = text.get(digits.len()..).unwrap_or_default();
    let is_size = digits.parse::<u64>().is_ok()
        && ["", "K", "M", "G", "T"].contains(&suffix.to_ascii_uppercase().as_str());
    match is_size {
        true => Ok(text.to_owned()),
        false => Err("a size is expected: bytes, or a number with K, M, G or T".to_owned()),
    }
}

/// Checks a guest's name. Its folder is beside the network helper's files in the runtime folder.
fn guest_name(text: &str) -> Result<String, String> {
    if ["net-helper", "net-helper.sock"].contains(&text) {
        return Err(format!(
            "'{text}' is the network helper's: choose another name"
        ));
    }
    name(text)
}

/// Checks that a name can be that of a file.
fn name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let first = |c: char| c.is_ascii_alphanumeric();
    if text.len() <= 64 && text.starts_with(first) && text.chars().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "'{text}' is no name: 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_read_as_written() {
        let disk = Disk::parse(OsStr::new(
            "/a,,b.raw,format=qcow2,readonly=on,allow-path=/base,,s,allow-path=../more",
        ))
        .unwrap();
        assert_eq!(disk.allow, [Path::new("/base,s"), Path::new("../more")]);
        assert_eq!(disk.path, Path::new("/a,b.raw"));
        assert_eq!(disk.format, "qcow2");
        assert!(disk.readonly);
    }

    #[test]
    fn paths_become_absolute() {
        use clap::Parser;

        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            guest: Definition,
        }

        let line = "run --name g --kernel k --initramfs /i --disk d.raw,allow-path=base".split(' ');
        let guest = Line::parse_from(line).guest.with_absolute_paths().unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!(guest.kernel, here.join("k"));
        assert_eq!(guest.initramfs.unwrap(), Path::new("/i"));
        assert_eq!(guest.disks[0].path, here.join("d.raw"));
        assert_eq!(guest.disks[0].allow, [here.join("base")]);
    }

    #[test]
    fn a_path_is_any_bytes() {
        let bytes = b"/tmp/a b\n\xff\xc3\xa9,,c.raw";
        let disk = Disk::parse(OsStr::from_bytes(bytes)).unwrap();
        assert_eq!(
            disk.path.as_os_str().as_bytes(),
            b"/tmp/a b\n\xff\xc3\xa9,c.raw"
        );
    }

    #[test]
    fn a_format_comes_from_the_name_or_is_asked_for() {
        assert_eq!(Disk::parse(OsStr::new("x.qcow2")).unwrap().format, "qcow2");
        assert_eq!(Disk::parse(OsStr::new("x.img")).unwrap().format, "raw");
        let error = Disk::parse(OsStr::new("disk")).unwrap_err();
        assert!(error.contains("add ,format=raw"), "{error}");
    }

    #[test]
    fn a_value_that_is_wrong_is_not_an_unknown_option() {
        for (text, says) in [
            ("x.img,readonly=maybe", "readonly: 'maybe' is not on or off"),
            ("x.img,readonly", "'readonly' has no value"),
            ("x.img,format=vmdk", "format: 'vmdk' is not raw or qcow2"),
            ("x.img,allow-path=", "allow-path: '' is not a folder"),
            ("x.img,readonly=on,readonly=off", "readonly is given twice"),
        ] {
            let error = Disk::parse(OsStr::new(text)).unwrap_err();
            assert!(error.starts_with(says), "{text}: {error}");
        }
        for wrong in ["zz", "", "01:00:00:00:00:01", "52:54:00:00:00:01:02"] {
            let error = format!("default,mac={wrong}").parse::<Net>().unwrap_err();
            assert!(error.starts_with("mac: "), "{wrong}: {error}");
        }
        for wrong in ["", "G", "1Q", "-1", "1.5G", "1GB"] {
            assert!(memory(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let disk = |text: &str| Disk::parse(OsStr::new(text)).unwrap_err();
        let net = |text: &str| text.parse::<Net>().unwrap_err();
        assert!(disk("x.img,cache=none").contains("unknown option 'cache=none'"));
        assert!(net("default,model=e1000").contains("unknown option 'model=e1000'"));
        assert!(name("../x").is_err());
        for taken in ["net-helper", "net-helper.sock"] {
            let error = guest_name(taken).unwrap_err();
            assert!(error.contains("the network helper's"), "{error}");
        }
        assert!(guest_name("net-helper2").is_ok());
        assert!(name("-x").is_err());
        assert!(name("").is_err());
    }
}
