//! What a guest consists of: one definition for the command line and for the API's JSON, whose names are Cloud
//! Hypervisor's.

mod list;
mod value;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use bulkhead_boot::layout::{MAX_RAM, MIN_RAM, PAGE_SIZE};
use bulkhead_devices::vhost_user::{
    FrontendConfig, Particulars, TYPE_BLOCK, TYPE_NET, device_type,
};
use serde::{Deserialize, Serialize};

const MAX_VCPUS: u32 = 255;
const QUEUE_SIZE: u16 = 256;
const MAX_QUEUE_SIZE: u16 = 1 << 15;
const HUGE_PAGE_SIZE: u64 = 2 << 20;

/// Everything about a guest.
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
    pub(crate) vhost_user: Vec<VhostUserConfig>,
    #[serde(default)]
    pub(crate) serial: SerialConfig,
}

/// What the guest boots.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PayloadConfig {
    #[serde(deserialize_with = "value::path")]
    pub(crate) kernel: PathBuf,
    #[serde(default)]
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
    /// How many there could be later. Adding them is not possible yet.
    #[serde(
        default,
        alias = "max",
        deserialize_with = "value::optional_number",
        skip_serializing_if = "Option::is_none"
    )]
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
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: 512 << 20,
            hugepages: false,
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
        if !(MIN_RAM..=MAX_RAM).contains(&self.size) {
            return Err(format!(
                "a guest has {}M to {}T of memory",
                MIN_RAM >> 20,
                MAX_RAM >> 40
            ));
        }
        if !self.size.is_multiple_of(unit) {
            return Err(format!("size is not a multiple of the page size, {unit}"));
        }
        Ok(())
    }
}

/// `vhost_user=on,socket=PATH[,num_queues=N,queue_size=N]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskConfig {
    #[serde(default, deserialize_with = "value::switch")]
    pub(crate) vhost_user: bool,
    #[serde(alias = "socket", deserialize_with = "value::path")]
    pub(crate) vhost_socket: PathBuf,
    #[serde(default, deserialize_with = "value::optional_number")]
    pub(crate) num_queues: Option<u16>,
    #[serde(default, deserialize_with = "value::optional_number")]
    pub(crate) queue_size: Option<u16>,
}

/// `vhost_user=on,socket=PATH[,mac=…,num_queues=N,queue_size=N]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetConfig {
    #[serde(default, deserialize_with = "value::switch")]
    pub(crate) vhost_user: bool,
    #[serde(alias = "socket", deserialize_with = "value::path")]
    pub(crate) vhost_socket: PathBuf,
    #[serde(default)]
    pub(crate) mac: Option<MacAddress>,
    #[serde(default, deserialize_with = "value::optional_number")]
    pub(crate) num_queues: Option<u16>,
    #[serde(default, deserialize_with = "value::optional_number")]
    pub(crate) queue_size: Option<u16>,
}

/// `type=blk|net|fs|NUMBER,socket=PATH[,num_queues=N,queue_size=N]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VhostUserConfig {
    #[serde(rename = "type")]
    pub(crate) device_type: DeviceType,
    #[serde(deserialize_with = "value::path")]
    pub(crate) socket: PathBuf,
    #[serde(default, deserialize_with = "value::optional_number")]
    pub(crate) num_queues: Option<u16>,
    #[serde(default, deserialize_with = "value::optional_number")]
    pub(crate) queue_size: Option<u16>,
}

/// A virtio device type (virtio 1.2, section 5), given by name or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct DeviceType(pub(crate) u16);

impl TryFrom<String> for DeviceType {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        device_type(&text)
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a virtio device type"))
    }
}

impl From<DeviceType> for String {
    fn from(DeviceType(number): DeviceType) -> Self {
        number.to_string()
    }
}

/// An Ethernet address of one station.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct MacAddress(pub(crate) [u8; 6]);

impl TryFrom<String> for MacAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|part| match part.len() {
                2 => u8::from_str_radix(part, 16).ok(),
                _ => None,
            })
            .collect();
        match bytes.map(<[u8; 6]>::try_from) {
            Some(Ok(bytes)) if bytes[0] & 1 == 0 && bytes != [0; 6] => Ok(Self(bytes)),
            _ => Err(format!("`{text}` is not the MAC address of one station")),
        }
    }
}

impl From<MacAddress> for String {
    fn from(MacAddress(bytes): MacAddress) -> Self {
        bytes.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// `tty|socket=PATH|file=PATH|off|null`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", deny_unknown_fields)]
pub(crate) enum SerialConfig {
    /// Standard input and output.
    #[default]
    Tty,
    /// A Unix socket that is made there.
    Socket { socket: PathBuf },
    /// A file that is written anew.
    File { file: PathBuf },
    /// No serial port.
    Off,
    /// A serial port that goes nowhere.
    Null,
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
pub(crate) struct ApiSocketConfig {
    #[serde(deserialize_with = "value::path")]
    pub(crate) path: PathBuf,
}

macro_rules! from_list {
    ($($config:ty),*) => {
        $(impl FromStr for $config {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                list::parse(text)
            }
        })*
    };
}

from_list!(
    CpusConfig,
    MemoryConfig,
    DiskConfig,
    NetConfig,
    VhostUserConfig,
    ApiSocketConfig
);

impl VmConfig {
    /// Checks what can be checked without the host: ranges, and what is not supported.
    pub(crate) fn check(&self) -> Result<(), String> {
        let named = |what: &str| {
            let what = what.to_owned();
            move |error: String| format!("{what}: {error}")
        };
        self.cpus.check().map_err(named("--cpus"))?;
        self.memory.check().map_err(named("--memory"))?;
        let local = "this monitor opens no image and no tap itself: start a backend and give vhost_user=on,socket=PATH";
        if self.disks.iter().any(|disk| !disk.vhost_user) {
            return Err(format!("--disk: {local}"));
        }
        if self.net.iter().any(|net| !net.vhost_user) {
            return Err(format!("--net: {local}"));
        }
        for (flag, device) in self.devices() {
            if device.num_queues == Some(0) {
                return Err(format!("{flag}: num_queues: a device has at least one"));
            }
            if !device.queue_size.is_power_of_two() || device.queue_size > MAX_QUEUE_SIZE {
                return Err(format!(
                    "{flag}: queue_size: a power of two up to {MAX_QUEUE_SIZE} is expected"
                ));
            }
        }
        Ok(())
    }

    /// All devices, in the order in which they are on the bus, and what people asked for them with.
    pub(crate) fn devices(&self) -> Vec<(&'static str, FrontendConfig)> {
        let frontend =
            |device_type, socket: &Path, num_queues, queue_size: Option<u16>| FrontendConfig {
                socket: socket.to_owned(),
                device_type,
                num_queues,
                queue_size: queue_size.unwrap_or(QUEUE_SIZE),
                particulars: Particulars::default(),
            };
        let disks = self.disks.iter().map(|disk| {
            let socket = &disk.vhost_socket;
            let device = frontend(TYPE_BLOCK, socket, disk.num_queues, disk.queue_size);
            ("--disk", device)
        });
        let nets = self.net.iter().map(|net| {
            let socket = &net.vhost_socket;
            let mut device = frontend(TYPE_NET, socket, net.num_queues, net.queue_size);
            device.particulars.mac = net.mac.map(|MacAddress(bytes)| bytes);
            ("--net", device)
        });
        let others = self.vhost_user.iter().map(|other| {
            let DeviceType(number) = other.device_type;
            let device = frontend(number, &other.socket, other.num_queues, other.queue_size);
            ("--vhost-user", device)
        });
        disks.chain(nets).chain(others).collect()
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(net.mac, Some(MacAddress([0x52, 0x54, 0, 0, 0, 1])));
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
            vhost_user: Vec::new(),
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

    #[test]
    fn device_types_go_by_name_or_number() {
        let device_type = |text: &str| DeviceType::try_from(text.to_owned());
        assert_eq!(device_type("fs"), Ok(DeviceType(26)));
        assert_eq!(device_type("26"), Ok(DeviceType(26)));
        assert_eq!(device_type("blk"), Ok(DeviceType(2)));
        for wrong in ["0", "64", "disk", ""] {
            assert!(device_type(wrong).is_err(), "{wrong}");
        }
    }
}
