//! The configuration of a guest. The command line and the API's JSON have one definition, with Cloud Hypervisor's
//! names.

mod contract;
mod device;
mod list;
mod value;

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use bulkhead_boot::layout::{MAX_RAM, MIN_RAM, PAGE_SIZE};
use bulkhead_devices::vhost_user::FrontendConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use device::{DiskConfig, FsConfig, NetConfig, VhostUserConfig};

const MAX_VCPUS: u32 = 255;
const LOCAL: &str = "this monitor opens no image and no tap itself: start a backend and give vhost_user=on,socket=PATH";
const HUGE_PAGE_SIZE: u64 = 2 << 20;

/// The configuration of a guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VmConfig {
    pub(crate) payload: PayloadConfig,
    #[serde(default)]
    pub(crate) cpus: CpusConfig,
    #[serde(default)]
    pub(crate) memory: MemoryConfig,
    #[serde(default)]
    pub(crate) disks: Vec<DiskConfig>,
    #[serde(default)]
    pub(crate) net: Vec<NetConfig>,
    #[serde(default)]
    pub(crate) fs: Vec<FsConfig>,
    #[serde(default, alias = "vhost_user")]
    pub(crate) generic_vhost_user: Vec<VhostUserConfig>,
    #[serde(default)]
    pub(crate) serial: SerialConfig,
}

/// Kernel, initramfs and command line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PayloadConfig {
    #[serde(deserialize_with = "value::path")]
    pub(crate) kernel: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) initramfs: Option<PathBuf>,
    #[serde(default)]
    pub(crate) cmdline: String,
}

/// `boot=N[,max=N]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CpusConfig {
    #[serde(alias = "boot", deserialize_with = "value::number")]
    pub(crate) boot_vcpus: u32,
    /// The most there could be later. They cannot be added yet.
    #[serde(default, alias = "max", deserialize_with = "value::optional_number")]
    pub(crate) max_vcpus: Option<u32>,
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self {
            boot_vcpus: 1,
            max_vcpus: None,
        }
    }
}

impl CpusConfig {
    fn check(&self) -> Result<(), String> {
        let max = self.max_vcpus.unwrap_or(self.boot_vcpus);
        if !(1..=MAX_VCPUS).contains(&self.boot_vcpus) || max > MAX_VCPUS {
            return Err(format!("a guest has 1 to {MAX_VCPUS} vCPUs"));
        }
        if max < self.boot_vcpus {
            return Err("max is less than boot".to_owned());
        }
        Ok(())
    }
}

/// `size=1G[,hugepages=on]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryConfig {
    /// Bytes.
    #[serde(deserialize_with = "value::size")]
    pub(crate) size: u64,
    #[serde(default, deserialize_with = "value::switch")]
    pub(crate) hugepages: bool,
    /// Whether the backends share it. They always do.
    #[serde(default = "yes", deserialize_with = "value::switch")]
    shared: bool,
}

fn yes() -> bool {
    true
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: 512 << 20,
            hugepages: false,
            shared: true,
        }
    }
}

impl MemoryConfig {
    fn check(&self) -> Result<(), String> {
        let unit = if self.hugepages {
            HUGE_PAGE_SIZE
        } else {
            PAGE_SIZE
        };
        let size = self.size;
        if !(MIN_RAM..=MAX_RAM).contains(&size) {
            let range = format!("{}M to {}T", MIN_RAM >> 20, MAX_RAM >> 40);
            return Err(match size {
                1..MIN_RAM => format!(
                    "size: {size} bytes are too few for a guest, which has {range}: for {size} MiB write {size}M"
                ),
                _ => format!("a guest has {range} of memory"),
            });
        }
        if !size.is_multiple_of(unit) {
            return Err(format!("size is not a multiple of the page size, {unit}"));
        }
        Ok(())
    }
}

/// `tty|socket=PATH|file=PATH|off|null`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", deny_unknown_fields)]
pub(crate) enum SerialConfig {
    /// Standard input and output.
    #[default]
    Tty,
    /// A Unix socket that the monitor creates.
    Socket { socket: PathBuf },
    /// A file, which is truncated.
    File { file: PathBuf },
    /// No serial port.
    Off,
    /// A serial port whose output is discarded.
    Null,
}

impl SerialConfig {
    /// Refuses fields of other modes, which serde ignores in a mode without fields.
    fn check_fields(serial: Option<&Value>) -> Result<(), String> {
        let fields = serial.and_then(Value::as_object);
        let mode = fields.and_then(|fields| fields.get("mode")?.as_str());
        let own = match mode {
            Some("File") => "file",
            Some("Socket") => "socket",
            _ => "mode",
        };
        let mut names = fields.into_iter().flat_map(|fields| fields.keys());
        match names.find(|name| !["mode", own].contains(&name.as_str())) {
            Some(name) => Err(format!("serial.{name}: this mode has no such field")),
            None => Ok(()),
        }
    }

    /// Refuses a file or socket that is not in `folder`, the only one that a monitor sees whose guest the API creates.
    pub(crate) fn check_folder(&self, folder: &Path) -> Result<(), String> {
        let (name, path) = match self {
            Self::File { file } => ("file", file),
            Self::Socket { socket } => ("socket", socket),
            Self::Tty | Self::Off | Self::Null => return Ok(()),
        };
        let mut parts = path.components();
        if path.starts_with(folder) && !parts.any(|part| part == Component::ParentDir) {
            return Ok(());
        }
        Err(format!(
            "serial.{name}: {} is not in {}, the folder of the API's socket, which alone this monitor can write to",
            path.display(),
            folder.display()
        ))
    }
}

impl FromStr for SerialConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.split_once('=')) {
            ("tty", _) => Ok(Self::Tty),
            ("off", _) => Ok(Self::Off),
            ("null", _) => Ok(Self::Null),
            (_, Some(("socket", path))) if !path.is_empty() => Ok(Self::Socket {
                socket: path.into(),
            }),
            (_, Some(("file", path))) if !path.is_empty() => Ok(Self::File { file: path.into() }),
            _ => Err("tty, socket=PATH, file=PATH, off or null is expected".to_owned()),
        }
    }
}

/// `path=PATH`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PathConfig {
    #[serde(deserialize_with = "value::path")]
    pub(crate) path: PathBuf,
}

macro_rules! from_list {
    ($($config:ty: $foreign:expr),* $(,)?) => {
        $(impl FromStr for $config {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                list::parse(text, $foreign)
            }
        })*
    };
}

from_list!(
    CpusConfig: &[contract::CPUS],
    DiskConfig: &[contract::PCI, contract::DISK],
    NetConfig: &[contract::PCI, contract::NET],
    FsConfig: &[contract::PCI],
    VhostUserConfig: &[contract::PCI],
    PathConfig: &[],
);

impl FromStr for MemoryConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with(|c: char| c.is_ascii_digit()) && !text.contains('=') {
            let unit = text.ends_with(|c: char| c.is_ascii_digit());
            let unit = if unit { "M" } else { "" };
            return Err(format!("write size={text}{unit}"));
        }
        list::parse(text, &[contract::MEMORY])
    }
}

impl VmConfig {
    /// Reads the body of `vm.create`, and checks it as [`Self::check`] does.
    pub(crate) fn from_json(text: &[u8]) -> Result<Self, String> {
        let mut value: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        contract::remove_nulls(&mut value);
        let object = value.as_object_mut().ok_or("an object is expected")?;
        contract::remove("", object, &[contract::VM])?;
        SerialConfig::check_fields(object.get("serial"))?;
        let config: Self =
            serde_path_to_error::deserialize(value).map_err(|error| error.to_string())?;
        config.check()
    }

    /// Checks ranges and unsupported values, without asking the host, and names the devices that have no name.
    pub(crate) fn check(mut self) -> Result<Self, String> {
        let named = |what: &str| {
            let what = what.to_owned();
            move |error: String| format!("{what}: {error}")
        };
        self.cpus.check().map_err(named("--cpus"))?;
        self.memory.check().map_err(named("--memory"))?;
        if self.disks.iter().any(|disk| !disk.vhost_user) {
            return Err(format!("--disk: {LOCAL}"));
        }
        if self.net.iter().any(|net| !net.vhost_user) {
            return Err(format!("--net: {LOCAL}"));
        }
        if !self.fs.iter().all(FsConfig::has_queues) {
            return Err("--fs: num_queues: a device has at least one".to_owned());
        }
        for device in &self.generic_vhost_user {
            device
                .check()
                .map_err(|error| format!("--vhost-user: {error}"))?;
        }
        for (flag, device) in self.devices() {
            device::check(&device).map_err(named(flag))?;
        }
        self.cpus.max_vcpus.get_or_insert(self.cpus.boot_vcpus);
        self.memory.shared = true;
        self.name_devices()?;
        Ok(self)
    }

    /// Gives devices without an identifier one in Cloud Hypervisor's form: `_disk0`, `_net1`.
    fn name_devices(&mut self) -> Result<(), String> {
        let disks = self.disks.iter_mut().map(|disk| ("disk", &mut disk.id));
        let nets = self.net.iter_mut().map(|net| ("net", &mut net.id));
        let shares = self.fs.iter_mut().map(|fs| ("fs", &mut fs.id));
        let others = self.generic_vhost_user.iter_mut();
        let others = others.map(|other| ("generic_vhost_user", &mut other.id));
        let mut used = HashSet::new();
        let devices = disks.chain(nets).chain(shares).chain(others);
        for (number, (kind, id)) in devices.enumerate() {
            let id = id.get_or_insert_with(|| format!("_{kind}{number}"));
            if !used.insert(id.clone()) {
                return Err(format!("id: two devices are called `{id}`"));
            }
        }
        Ok(())
    }

    /// All devices in the order of the PCI bus, with the option of each.
    pub(crate) fn devices(&self) -> Vec<(&'static str, FrontendConfig)> {
        let disks = self.disks.iter().map(|disk| ("--disk", disk.frontend()));
        let nets = self.net.iter().map(|net| ("--net", net.frontend()));
        let shares = self.fs.iter().map(|fs| ("--fs", fs.frontend()));
        let others = self.generic_vhost_user.iter();
        let others = others.map(|other| ("--vhost-user", other.frontend()));
        disks.chain(nets).chain(shares).chain(others).collect()
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_mac::MacAddr;

    use super::*;

    #[test]
    fn a_list_and_its_json_form_are_the_same() {
        let flag: CpusConfig = "boot=2,max=4".parse().unwrap();
        let json: CpusConfig =
            serde_json::from_str(r#"{"boot_vcpus": 2, "max_vcpus": 4}"#).unwrap();
        assert_eq!((flag.boot_vcpus, flag.max_vcpus), (2, Some(4)));
        assert_eq!((json.boot_vcpus, json.max_vcpus), (2, Some(4)));

        let net: NetConfig = "vhost_user=on,socket=/s,mac=52:54:00:00:00:01"
            .parse()
            .unwrap();
        assert!(net.vhost_user);
        assert_eq!(net.mac, Some(MacAddr::new([0x52, 0x54, 0, 0, 0, 1])));
    }

    #[test]
    fn ranges_are_checked() {
        let config = |cpus: &str, memory: &str| VmConfig {
            payload: PayloadConfig {
                kernel: "/k".into(),
                initramfs: None,
                cmdline: String::new(),
            },
            cpus: cpus.parse().unwrap(),
            memory: memory.parse().unwrap(),
            disks: Vec::new(),
            net: Vec::new(),
            fs: Vec::new(),
            generic_vhost_user: Vec::new(),
            serial: SerialConfig::Off,
        };
        for (cpus, memory, right) in [
            ("boot=1", "size=512M", true),
            ("boot=255", "size=512M", true),
            ("boot=0", "size=512M", false),
            ("boot=256", "size=512M", false),
            ("boot=2,max=1", "size=512M", false),
            ("boot=1", "size=0", false),
            ("boot=1", "size=4K", false),
            ("boot=1", "size=4194305", false),
            ("boot=1", "size=3M,hugepages=on", false),
            ("boot=1", "size=99T", false),
        ] {
            assert_eq!(
                config(cpus, memory).check().is_ok(),
                right,
                "{cpus} {memory}"
            );
        }
    }

    #[test]
    fn a_guest_of_the_api_writes_only_in_its_folder() {
        let check = |serial: &str| {
            let serial: SerialConfig = serial.parse().unwrap();
            serial.check_folder(Path::new("/run/guest"))
        };
        for right in [
            "tty",
            "off",
            "null",
            "file=/run/guest/log",
            "file=/run/guest/logs/./1",
            "socket=/run/guest/serial.sock",
        ] {
            assert_eq!(check(right), Ok(()), "{right}");
        }
        for wrong in [
            "file=/run/guests/log",
            "file=/run/guest/../log",
            "file=log",
            "socket=/tmp/serial.sock",
        ] {
            let (mode, path) = wrong.split_once('=').unwrap();
            let error = check(wrong).unwrap_err();
            let start = format!("serial.{mode}: {path} is not in /run/guest, the folder");
            assert!(error.starts_with(&start), "{error}");
        }
    }

    #[test]
    fn serial_targets_are_those_of_the_manual() {
        let socket = SerialConfig::Socket {
            socket: "/s".into(),
        };
        assert_eq!("socket=/s".parse(), Ok(socket));
        assert_eq!("off".parse(), Ok(SerialConfig::Off));
        for wrong in ["", "file=", "pty", "tty=1", "socket"] {
            assert!(wrong.parse::<SerialConfig>().is_err(), "{wrong}");
        }
    }
}
