//! The configuration of devices: each has a backend's socket, and options for what the driver sees.

use std::path::PathBuf;

use bulkhead_devices::vhost_user::{
    DeviceOptions, FrontendConfig, TYPE_BLOCK, TYPE_FS, TYPE_NET, device_type, usual_queues,
};
use bulkhead_mac::MacAddr;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::value;

const QUEUE_SIZE: u16 = 256;
/// Some backends of other types end when a queue is larger.
const OTHER_QUEUE_SIZE: u16 = 128;
const FS_QUEUE_SIZE: u16 = 1024;
const MAX_QUEUE_SIZE: u16 = 1 << 15;
/// The smallest MTU of IPv4.
const MIN_MTU: u16 = 68;

fn queue_size() -> u16 {
    QUEUE_SIZE
}

fn one() -> u16 {
    1
}

fn two() -> u16 {
    2
}

fn fs_queue_size() -> u16 {
    FS_QUEUE_SIZE
}

/// `vhost_user=on,socket=PATH[,readonly=on,num_queues=N,queue_size=N,id=ID]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    #[serde(default, deserialize_with = "value::switch")]
    pub(super) vhost_user: bool,
    #[serde(alias = "socket", deserialize_with = "value::path")]
    vhost_socket: PathBuf,
    /// Whether the backend must offer a read-only disk.
    #[serde(default, deserialize_with = "value::switch")]
    readonly: bool,
    #[serde(default = "one", deserialize_with = "value::number")]
    num_queues: u16,
    #[serde(default = "queue_size", deserialize_with = "value::number")]
    queue_size: u16,
}

/// `vhost_user=on,socket=PATH[,mac=…,mtu=N,num_queues=N,queue_size=N,id=ID]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    #[serde(default, deserialize_with = "value::switch")]
    pub(super) vhost_user: bool,
    #[serde(alias = "socket", deserialize_with = "value::path")]
    vhost_socket: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mac: Option<MacAddr>,
    #[serde(
        default,
        deserialize_with = "value::optional_number",
        skip_serializing_if = "Option::is_none"
    )]
    mtu: Option<u16>,
    #[serde(default = "two", deserialize_with = "value::number")]
    num_queues: u16,
    #[serde(default = "queue_size", deserialize_with = "value::number")]
    queue_size: u16,
}

/// `tag=TAG,socket=PATH[,num_queues=N,queue_size=N,id=ID]`. `num_queues` is the number of request queues.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FsConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    tag: String,
    #[serde(deserialize_with = "value::path")]
    socket: PathBuf,
    #[serde(default = "one", deserialize_with = "value::number")]
    num_queues: u16,
    #[serde(default = "fs_queue_size", deserialize_with = "value::number")]
    queue_size: u16,
}

/// `type=blk|net|fs|NUMBER,socket=PATH[,tag=TAG,num_queues=N,queue_size=N,id=ID]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VhostUserConfig {
    #[serde(default)]
    pub(super) id: Option<String>,
    #[serde(alias = "type", alias = "virtio_id")]
    device_type: DeviceType,
    #[serde(deserialize_with = "value::path")]
    socket: PathBuf,
    /// A file system's tag.
    #[serde(default)]
    tag: Option<String>,
    #[serde(default, deserialize_with = "value::optional_number")]
    num_queues: Option<u16>,
    #[serde(default, deserialize_with = "value::optional_number")]
    queue_size: Option<u16>,
    /// The size of each queue, instead of the two fields above.
    #[serde(default, deserialize_with = "value::optional_numbers")]
    queue_sizes: Option<Vec<u16>>,
}

impl Serialize for VhostUserConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Contract<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            id: &'a Option<String>,
            device_type: u16,
            socket: &'a PathBuf,
            #[serde(skip_serializing_if = "Option::is_none")]
            tag: &'a Option<String>,
            queue_sizes: Vec<u16>,
        }
        let DeviceType(number) = self.device_type;
        let queues = self.num_queues.or(usual_queues(number)).unwrap_or(1);
        let sizes = vec![self.size(); queues.into()];
        Contract {
            id: &self.id,
            device_type: number,
            socket: &self.socket,
            tag: &self.tag,
            queue_sizes: self.queue_sizes.clone().unwrap_or(sizes),
        }
        .serialize(serializer)
    }
}

impl DiskConfig {
    pub(super) fn frontend(&self) -> FrontendConfig {
        FrontendConfig {
            socket: self.vhost_socket.clone(),
            device_type: TYPE_BLOCK,
            num_queues: Some(self.num_queues),
            queue_sizes: vec![self.queue_size],
            options: DeviceOptions {
                read_only: self.readonly,
                ..DeviceOptions::default()
            },
        }
    }
}

impl NetConfig {
    pub(super) fn frontend(&self) -> FrontendConfig {
        FrontendConfig {
            socket: self.vhost_socket.clone(),
            device_type: TYPE_NET,
            num_queues: Some(self.num_queues),
            queue_sizes: vec![self.queue_size],
            options: DeviceOptions {
                mac: self.mac,
                mtu: self.mtu,
                ..DeviceOptions::default()
            },
        }
    }
}

impl FsConfig {
    pub(super) fn frontend(&self) -> FrontendConfig {
        FrontendConfig {
            socket: self.socket.clone(),
            device_type: TYPE_FS,
            // The first queue is the high priority queue.
            num_queues: Some(self.num_queues.saturating_add(1)),
            queue_sizes: vec![self.queue_size],
            options: DeviceOptions {
                tag: Some(self.tag.clone()),
                ..DeviceOptions::default()
            },
        }
    }

    pub(super) fn has_queues(&self) -> bool {
        self.num_queues > 0
    }
}

impl VhostUserConfig {
    pub(super) fn frontend(&self) -> FrontendConfig {
        let DeviceType(number) = self.device_type;
        let sizes = &self.queue_sizes;
        let count = sizes
            .as_ref()
            .map(|sizes| u16::try_from(sizes.len()).unwrap_or(u16::MAX));
        let size = || vec![self.size()];
        FrontendConfig {
            socket: self.socket.clone(),
            device_type: number,
            num_queues: count.or(self.num_queues),
            queue_sizes: sizes.clone().unwrap_or_else(size),
            options: DeviceOptions {
                tag: self.tag.clone(),
                ..DeviceOptions::default()
            },
        }
    }

    fn size(&self) -> u16 {
        let usual = match self.device_type {
            DeviceType(TYPE_BLOCK | TYPE_NET) => QUEUE_SIZE,
            _ => OTHER_QUEUE_SIZE,
        };
        self.queue_size.unwrap_or(usual)
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.queue_sizes.is_some() && (self.num_queues.is_some() || self.queue_size.is_some()) {
            return Err("queue_sizes is instead of num_queues and queue_size");
        }
        if self.tag.is_some() && self.device_type != DeviceType(TYPE_FS) {
            return Err("tag: only a file system has one");
        }
        Ok(())
    }
}

/// Checks what all devices have in common.
pub(super) fn check(device: &FrontendConfig) -> Result<(), String> {
    if device.num_queues == Some(0) {
        return Err("num_queues: a device has at least one".to_owned());
    }
    let fits = |size: &u16| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE;
    if !device.queue_sizes.iter().all(fits) {
        return Err(format!(
            "queue_size: a power of two up to {MAX_QUEUE_SIZE} is expected"
        ));
    }
    if device.options.mtu.is_some_and(|mtu| mtu < MIN_MTU) {
        return Err(format!("mtu: {MIN_MTU} to 65535 is expected"));
    }
    Ok(())
}

/// A virtio device type (virtio 1.2, section 5), given by name or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceType(pub(crate) u16);

impl TryFrom<String> for DeviceType {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        device_type(&text)
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a virtio device type"))
    }
}

impl<'de> Deserialize<'de> for DeviceType {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        Self::try_from(value::text(input)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_file_system_has_a_tag_by_either_way() {
        let fs: FsConfig = "tag=share,socket=/s".parse().unwrap();
        let other: VhostUserConfig = "type=fs,tag=share,socket=/s".parse().unwrap();
        assert_eq!(fs.frontend().num_queues, Some(2));
        for device in [fs.frontend(), other.frontend()] {
            assert_eq!(device.device_type, TYPE_FS);
            assert_eq!(device.options.tag.as_deref(), Some("share"));
        }
        assert!("socket=/s".parse::<FsConfig>().is_err());
        let wrong: VhostUserConfig = "type=blk,tag=share,socket=/s".parse().unwrap();
        assert!(wrong.check().is_err());
    }

    #[test]
    fn queues_are_no_longer_than_usual_unless_asked_for() {
        for (text, size) in [
            ("type=blk,socket=/s", 256),
            ("type=console,socket=/s", 128),
            ("type=60,socket=/s", 128),
            ("type=console,socket=/s,queue_size=512", 512),
        ] {
            let device: VhostUserConfig = text.parse().unwrap();
            assert_eq!(device.frontend().queue_sizes, [size], "{text}");
        }
    }

    #[test]
    fn queues_may_differ_in_size() {
        let text = r#"{"device_type": 3, "socket": "/s", "queue_sizes": [64, 256]}"#;
        let device: VhostUserConfig = serde_json::from_str(text).unwrap();
        let frontend = device.frontend();
        assert_eq!(frontend.num_queues, Some(2));
        assert_eq!(frontend.queue_sizes, [64, 256]);
        let text = r#"{"device_type": "rng", "socket": "/s", "queue_sizes": [3]}"#;
        let device: VhostUserConfig = serde_json::from_str(text).unwrap();
        assert!(check(&device.frontend()).is_err());
    }
}
