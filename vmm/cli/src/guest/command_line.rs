//! A guest as people write it on the command line of `bulkhead run`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use bulkhead_mac::MacAddr;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::definition::{Definition, Disk, Format, Memory, Net, guest_name, network_name};
use super::options::Options;

/// A guest.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CommandLine {
    /// The guest's name
    #[arg(long, value_parser = guest_name)]
    pub(crate) name: String,
    /// Number of virtual CPUs
    #[arg(long, default_value_t = 1, value_parser = cpus)]
    cpus: u8,
    /// Memory: bytes, or a number with K, M, G or T
    #[arg(long, default_value = "512M")]
    memory: Memory,
    /// Kernel: a bzImage or an ELF vmlinux
    #[arg(long, value_name = "PATH")]
    kernel: PathBuf,
    /// Initial RAM file system
    #[arg(long, value_name = "PATH")]
    initramfs: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, default_value = "console=ttyS0")]
    cmdline: String,
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
        value_parser = OsStringValueParser::new().try_map(|text| disk(&text))
    )]
    disks: Vec<Disk>,
    /// Network to connect to: NETWORK[,mac=MAC]
    #[arg(long = "net", value_name = "NETWORK[,…]")]
    nets: Vec<Net>,
}

impl From<CommandLine> for Definition {
    fn from(line: CommandLine) -> Self {
        Self {
            cpus: line.cpus,
            memory: line.memory,
            initramfs: line.initramfs,
            cmdline: line.cmdline,
            disks: line.disks,
            nets: line.nets,
            ..Self::new(line.name, line.kernel)
        }
    }
}

fn disk(text: &OsStr) -> Result<Disk, String> {
    let (path, mut options) = Options::split(text.as_bytes());
    if path.is_empty() {
        return Err("no path".to_owned());
    }
    let path = PathBuf::from(OsString::from_vec(path));
    let mut format = None;
    let mut readonly = false;
    let mut allow_path = Vec::new();
    while let Some(given) = options.next(&["format", "readonly"], &["allow-path"])? {
        match &*given.key() {
            "format" => {
                let name = given.one_of(&Format::NAMES)?;
                format = name.parse().ok();
            }
            "readonly" => readonly = given.switch()?,
            _ if given.value.is_empty() => return Err(given.wrong("a folder")),
            _ => allow_path.push(PathBuf::from(OsString::from_vec(given.value))),
        }
    }
    let format = format.or_else(|| Format::by_ending(&path)).ok_or_else(|| {
        let options = Format::NAMES.map(|name| format!(",format={name}"));
        format!(
            "the format of {} is not known: add {}",
            path.display(),
            options.join(" or ")
        )
    })?;
    Ok(Disk {
        path,
        format,
        readonly,
        serial: None,
        queues: 1,
        target: None,
        allow_path,
    })
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (network, mut options) = Options::split(text.as_bytes());
        let network = network_name(&String::from_utf8_lossy(&network))?;
        let mut mac = None;
        while let Some(given) = options.next(&["mac"], &[])? {
            let text = String::from_utf8_lossy(&given.value);
            let valid = text.parse::<MacAddr>();
            mac = Some(valid.map_err(|error| format!("mac: {error}"))?);
        }
        Ok(Self {
            network,
            mac,
            queues: 1,
        })
    }
}

fn cpus(text: &str) -> Result<u8, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "it must be 1 to 255".to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_disk_is_read_as_written() {
        let disk = disk(OsStr::new(
            "/a,,b.raw,format=qcow2,readonly=on,allow-path=/base,,s,allow-path=../more",
        ))
        .unwrap();
        assert_eq!(
            disk.allow_path,
            [Path::new("/base,s"), Path::new("../more")]
        );
        assert_eq!(disk.path, Path::new("/a,b.raw"));
        assert_eq!(disk.format, Format::Qcow2);
        assert!(disk.readonly);
    }

    #[test]
    fn paths_become_absolute() {
        use clap::Parser;

        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            guest: CommandLine,
        }

        let line = "run --name g --kernel k --initramfs /i --disk d.raw,allow-path=base".split(' ');
        let guest = Definition::from(Line::parse_from(line).guest);
        let guest = guest.with_absolute_paths().unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!(guest.kernel, here.join("k"));
        assert_eq!(guest.initramfs.unwrap(), Path::new("/i"));
        assert_eq!(guest.disks[0].path, here.join("d.raw"));
        assert_eq!(guest.disks[0].allow_path, [here.join("base")]);
    }

    #[test]
    fn a_path_is_any_bytes() {
        let bytes = b"/tmp/a b\n\xff\xc3\xa9,,c.raw";
        let disk = disk(OsStr::from_bytes(bytes)).unwrap();
        assert_eq!(
            disk.path.as_os_str().as_bytes(),
            b"/tmp/a b\n\xff\xc3\xa9,c.raw"
        );
    }

    #[test]
    fn a_format_comes_from_the_name_or_is_asked_for() {
        let format = |text: &str| disk(OsStr::new(text)).map(|disk| disk.format);
        assert_eq!(format("x.qcow2").unwrap(), Format::Qcow2);
        assert_eq!(format("x.img").unwrap(), Format::Raw);
        let error = format("disk").unwrap_err();
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
            let error = disk(OsStr::new(text)).unwrap_err();
            assert!(error.starts_with(says), "{text}: {error}");
        }
        for wrong in ["zz", "", "01:00:00:00:00:01", "52:54:00:00:00:01:02"] {
            let error = format!("default,mac={wrong}").parse::<Net>().unwrap_err();
            assert!(error.starts_with("mac: "), "{wrong}: {error}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let disk = |text: &str| disk(OsStr::new(text)).unwrap_err();
        let net = |text: &str| text.parse::<Net>().unwrap_err();
        assert!(disk("x.img,cache=none").contains("unknown option 'cache=none'"));
        assert!(net("default,model=e1000").contains("unknown option 'model=e1000'"));
    }
}
