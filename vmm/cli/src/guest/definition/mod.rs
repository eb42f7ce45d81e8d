//! The definition of a guest: the one description from which its processes are derived.
//!
//! People write it as a TOML file; `bulkhead run` makes one of its command line. Its JSON Schema is generated from the
//! structs here, and the documentation of the fields is theirs.

mod check;
mod document;
mod format;
mod identity;
mod metadata;
mod text;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::Context;
use bulkhead_mac::MacAddr;
use bulkhead_net_protocol::MAX_QUEUES;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) use document::Text;
pub(crate) use identity::VENDOR;
pub(crate) use metadata::MetadataChange;
pub(crate) use qcow_format::Format;
#[allow(unused_imports, reason = "the fuzz target uses them")]
pub(crate) use text::{Wrong, parse, write};
pub(crate) use value::{DeviceType, Memory, disk_target, guest_name, network_name};

/// The most request queues of a disk.
const MAX_DISK_QUEUES: u16 = 256;

/// A guest of Bulkhead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Definition {
    /// The guest's name, which is also that of its file: 1 to 64 letters, digits, '.', '_' or '-', a letter or digit
    /// first.
    #[serde(deserialize_with = "value::guest")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"))]
    pub(crate) name: String,
    /// The guest's UUID. `bulkhead define` makes one and writes it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "uuid"))]
    pub(crate) uuid: Option<Uuid>,
    /// A short text in one line for `bulkhead list --title`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) title: Option<String>,
    /// Any text for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    /// The number of virtual CPUs.
    #[serde(default = "one_cpu", deserialize_with = "value::cpus")]
    #[schemars(range(min = 1, max = 255))]
    pub(crate) cpus: u8,
    /// The memory: a number of bytes, or a text such as "512M" or "4G" (K, M, G, T; 1024 of each are one of the next).
    #[serde(default)]
    pub(crate) memory: Memory,
    /// The kernel: a bzImage or an ELF vmlinux.
    pub(crate) kernel: PathBuf,
    /// The initial RAM file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) initramfs: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default = "usual_cmdline")]
    pub(crate) cmdline: String,
    /// Where the output of the serial port goes, and its input comes from.
    #[serde(default)]
    pub(crate) serial: Serial,
    /// Whether the guest is started with the host.
    #[serde(default)]
    pub(crate) autostart: bool,
    /// What follows when the guest powers off.
    #[serde(default = "destroy")]
    pub(crate) on_poweroff: Action,
    /// What follows when the guest resets itself.
    #[serde(default = "restart")]
    pub(crate) on_reboot: Action,
    /// What follows when the guest crashes.
    #[serde(default = "destroy")]
    pub(crate) on_crash: Action,
    /// The disks, each in a process of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) disks: Vec<Disk>,
    /// The network cards, each in a process of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) nets: Vec<Net>,
    /// Devices that other programs serve: virtiofsd, SPDK, and so on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) vhost_user: Vec<VhostUser>,
    /// Texts of other programs about this guest, each under a URI that is the program's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) metadata: BTreeMap<String, String>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Disk {
    /// The image.
    pub(crate) path: PathBuf,
    /// The image's format. It is never guessed from the content, which the guest can write.
    #[serde(
        serialize_with = "format::serialize",
        deserialize_with = "format::deserialize"
    )]
    #[schemars(schema_with = "format::schema")]
    pub(crate) format: Format,
    /// Whether the guest may only read.
    #[serde(default, skip_serializing_if = "is_off")]
    pub(crate) readonly: bool,
    /// The serial number that the guest sees, up to 20 bytes.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "value::disk_serial"
    )]
    #[schemars(length(max = 20))]
    pub(crate) serial: Option<String>,
    /// The number of request queues.
    #[serde(
        default = "one_queue",
        skip_serializing_if = "is_one",
        deserialize_with = "value::count::<_, MAX_DISK_QUEUES>"
    )]
    #[schemars(range(min = 1, max = 256))]
    pub(crate) queues: u16,
    /// The name of the disk: "vda", "vdb", and so on. The guest sees the disks in the order of these names; without
    /// one, the disk has the first that is free.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "value::target"
    )]
    #[schemars(regex(pattern = "^vd[a-z]{1,3}$"))]
    pub(crate) target: Option<String>,
    /// Folders, besides the image's own, in which its backing and data files may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) allow_path: Vec<PathBuf>,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Net {
    /// The network it is connected to.
    #[serde(deserialize_with = "value::network")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"))]
    pub(crate) network: String,
    /// The MAC address. `bulkhead define` makes one and writes it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "Option<String>",
        extend("pattern" = "^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$")
    )]
    pub(crate) mac: Option<MacAddr>,
    /// The number of pairs of queues.
    #[serde(
        default = "one_queue",
        skip_serializing_if = "is_one",
        deserialize_with = "value::count::<_, MAX_QUEUES>"
    )]
    #[schemars(range(min = 1, max = MAX_QUEUES))]
    pub(crate) queues: u16,
}

/// A device that another program serves by vhost-user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct VhostUser {
    /// The virtio device type: a name such as "fs", "blk", "net", "vsock", or a number.
    #[serde(rename = "type")]
    pub(crate) device_type: DeviceType,
    /// The socket on which the program listens.
    pub(crate) socket: PathBuf,
    /// The tag by which the guest mounts a file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36))]
    pub(crate) tag: Option<String>,
    /// The number of queues, all of them counted. Without it, the device has as many as its type usually has.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "value::some_count"
    )]
    #[schemars(range(min = 1, max = 1024))]
    pub(crate) queues: Option<u16>,
}

/// The serial port: "console", "off", or { file = PATH }.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Serial {
    /// The guest's console: `bulkhead console` connects to it.
    #[default]
    Console,
    /// The guest has no serial port.
    Off,
    /// The output is written to this file, which is emptied first. There is no input.
    File(PathBuf),
}

/// What follows an end of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    /// Its processes end.
    Destroy,
    /// The guest is started again.
    Restart,
    /// Its processes stay as they are, to be looked at.
    Preserve,
}

fn one_cpu() -> u8 {
    1
}

fn usual_cmdline() -> String {
    "console=ttyS0".to_owned()
}

fn one_queue() -> u16 {
    1
}

fn destroy() -> Action {
    Action::Destroy
}

fn restart() -> Action {
    Action::Restart
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_off(switch: &bool) -> bool {
    !switch
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_one(number: &u16) -> bool {
    *number == 1
}

impl Definition {
    /// A guest with this name and kernel, and everything else as it is without further lines in the file.
    pub(crate) fn new(name: String, kernel: PathBuf) -> Self {
        Self {
            name,
            uuid: None,
            title: None,
            description: None,
            cpus: one_cpu(),
            memory: Memory::default(),
            kernel,
            initramfs: None,
            cmdline: usual_cmdline(),
            serial: Serial::default(),
            autostart: false,
            on_poweroff: destroy(),
            on_reboot: restart(),
            on_crash: destroy(),
            disks: Vec::new(),
            nets: Vec::new(),
            vhost_user: Vec::new(),
            metadata: BTreeMap::new(),
        }
    }

    /// Makes all paths absolute, so that the definition means the same in every process.
    ///
    /// # Errors
    /// When the current folder is not known, or a path is empty.
    pub(crate) fn with_absolute_paths(mut self) -> anyhow::Result<Self> {
        for path in self.paths_mut() {
            *path = std::path::absolute(&*path)
                .with_context(|| format!("cannot tell where {} is", path.display()))?;
        }
        Ok(self)
    }

    /// Makes all paths text, with replacement characters for what is none, so that the definition can be shown.
    pub(crate) fn with_shown_paths(mut self) -> Self {
        for path in self.paths_mut() {
            *path = path.to_string_lossy().into_owned().into();
        }
        self
    }

    fn paths_mut(&mut self) -> Vec<&mut PathBuf> {
        let mut paths = vec![&mut self.kernel];
        paths.extend(&mut self.initramfs);
        if let Serial::File(path) = &mut self.serial {
            paths.push(path);
        }
        for disk in &mut self.disks {
            paths.push(&mut disk.path);
            paths.extend(&mut disk.allow_path);
        }
        paths.extend(self.vhost_user.iter_mut().map(|device| &mut device.socket));
        paths
    }

    /// The disks, each with its name, in the order of these names, which is that in which the guest sees them.
    pub(crate) fn named_disks(&self) -> Vec<(String, &Disk)> {
        let is_taken = |name: &String| {
            let mut given = self.disks.iter().flat_map(|disk| &disk.target);
            given.any(|given| given == name)
        };
        let mut free = (0..).map(disk_target).filter(|name| !is_taken(name));
        let mut named: Vec<_> = self
            .disks
            .iter()
            .filter_map(|disk| {
                let name = disk.target.clone().or_else(|| free.next())?;
                Some((name, disk))
            })
            .collect();
        // `vdz` comes before `vdaa`.
        named.sort_by(|(a, _), (b, _)| (a.len(), a).cmp(&(b.len(), b)));
        named
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Destroy => "destroy",
            Self::Restart => "restart",
            Self::Preserve => "preserve",
        })
    }
}
