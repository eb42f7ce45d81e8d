//! What Cloud Hypervisor's configuration has and ours has not. What says what happens here anyway, or is at its default, is taken
//! and forgotten; the rest is refused, by name and with a reason.

use serde_json::{Map, Value};

type Object = Map<String, Value>;

/// A field of an object, and what becomes of it.
pub(super) struct Field(&'static str, Rule);

enum Rule {
    /// Taken when it is one of these, as JSON or as on a command line; otherwise refused for this reason.
    Only(&'static [&'static str], &'static str),
    /// Whatever it is, it makes no difference here.
    Any,
    /// An object without a counterpart here.
    Foreign(&'static [&'static [Field]]),
    /// An object that is ours, with more fields.
    Ours(&'static [&'static [Field]]),
    /// A list of such.
    EachOurs(&'static [&'static [Field]]),
}

use Rule::{Any, EachOurs, Foreign, Only, Ours};

const OFF: &[&str] = &["false"];
const NONE: &[&str] = &["[]"];
const NEVER: &[&str] = &[];

const BACKEND: &str =
    "the backend decides that: it is an option of the process that serves the device";
const LIMITS: &str =
    "this monitor does not see the requests: limit the backend, by a control group";
const NO_HOTPLUG: &str = "memory and vCPUs are not added to a guest that runs";

pub(super) const VM: &[Field] = &[
    Field("cpus", Ours(&[CPUS])),
    Field("memory", Ours(&[MEMORY])),
    Field("payload", Ours(&[PAYLOAD])),
    Field("disks", EachOurs(&[PCI, DISK])),
    Field("net", EachOurs(&[PCI, NET])),
    Field("fs", EachOurs(&[PCI])),
    Field("generic_vhost_user", EachOurs(&[PCI])),
    Field("serial", Ours(&[SERIAL])),
    Field("rng", Foreign(&[PCI, RNG])),
    Field("console", Foreign(&[PCI, CONSOLE])),
    Field("debug_console", Foreign(&[DEBUG_CONSOLE])),
    Field("platform", Foreign(&[PLATFORM])),
    Field("rate_limit_groups", Only(NONE, LIMITS)),
    Field("balloon", Only(NEVER, "there is no balloon")),
    Field("pmem", Only(NONE, "there is no persistent memory")),
    Field("devices", Only(NONE, "host devices are not passed through")),
    Field("user_devices", Only(NONE, "there is no vfio-user")),
    Field("vdpa", Only(NONE, "there is no vDPA")),
    Field(
        "vsock",
        Only(
            NEVER,
            "start vhost-device-vsock and give its socket in generic_vhost_user",
        ),
    ),
    Field("numa", Only(NONE, "a guest has one NUMA node")),
    Field("iommu", Only(OFF, NO_IOMMU)),
    Field("watchdog", Only(OFF, "there is no watchdog")),
    Field("pvpanic", Only(OFF, "there is no pvpanic device")),
    Field("rtc", Only(NEVER, "there is no virtio clock")),
    Field("gdb", Only(OFF, "there is no debugger's port")),
    Field("pci_segments", Only(NONE, ONE_SEGMENT)),
    Field("tpm", Only(NEVER, "there is no TPM")),
    Field(
        "pvmemcontrol",
        Only(NEVER, "there is no memory control device"),
    ),
    Field("ivshmem", Only(NEVER, "guests share no memory")),
    // This process is always confined to what it was given.
    Field("landlock_enable", Any),
    Field(
        "landlock_rules",
        Only(NONE, "this process is confined to what it was given"),
    ),
];

pub(super) const CPUS: &[Field] = &[
    Field(
        "topology",
        Only(
            NEVER,
            "a guest has one socket of cores with one thread each",
        ),
    ),
    Field("kvm_hyperv", Only(OFF, "there is no Hyper-V emulation")),
    Field(
        "max_phys_bits",
        Only(&["46"], "a guest has the host's physical addresses"),
    ),
    Field(
        "affinity",
        Only(
            NONE,
            "bind the threads from outside, by taskset or a control group",
        ),
    ),
    Field(
        "features",
        Foreign(&[&[Field("amx", Only(OFF, "there is no AMX"))]]),
    ),
    Field("nested", Only(&["true"], "a guest has what KVM supports")),
    Field(
        "core_scheduling",
        Only(&["Vm", "Off"], "vCPUs have no cookies of their own"),
    ),
    Field(
        "profile",
        Only(&["Host", "host"], "a guest has the host's CPU"),
    ),
];

pub(super) const MEMORY: &[Field] = &[
    Field(
        "mergeable",
        Only(OFF, "memory is shared with backends and cannot be merged"),
    ),
    Field("hotplug_method", Any),
    Field("hotplug_size", Only(&["0"], NO_HOTPLUG)),
    Field("hotplugged_size", Only(&["0"], NO_HOTPLUG)),
    Field(
        "hugepage_size",
        Only(&["2097152", "2M"], "huge pages have 2 MiB"),
    ),
    Field("prefault", Only(OFF, "memory is allocated when it is used")),
    Field("reserve", Only(OFF, "memory is allocated when it is used")),
    Field("zones", Only(NONE, "a guest has one memory zone")),
    // Backends share the memory, so it has none of them.
    Field("thp", Any),
];

pub(super) const PAYLOAD: &[Field] = &[
    Field(
        "firmware",
        Only(NEVER, "a guest boots a kernel, not firmware"),
    ),
    Field("igvm", Only(NEVER, "a guest boots a kernel, not IGVM")),
    Field("host_data", Only(NEVER, "there are no confidential guests")),
    Field("fw_cfg_config", Only(NEVER, "there is no fw_cfg device")),
];

const NO_IOMMU: &str = "there is no virtual IOMMU";
const ONE_SEGMENT: &str = "there is one PCI segment";

pub(super) const PCI: &[Field] = &[
    Field("iommu", Only(OFF, NO_IOMMU)),
    Field("pci_segment", Only(&["0"], ONE_SEGMENT)),
    Field(
        "pci_device_id",
        Only(
            NEVER,
            "devices are on the bus in the order they are given in",
        ),
    ),
];

pub(super) const DISK: &[Field] = &[
    Field("path", Only(NEVER, super::LOCAL)),
    Field("direct", Only(OFF, BACKEND)),
    Field("serial", Only(NEVER, BACKEND)),
    Field("rate_limiter_config", Only(&["{}"], LIMITS)),
    Field("rate_limit_group", Only(NEVER, LIMITS)),
    Field("queue_affinity", Only(NONE, BACKEND)),
    Field("disable_io_uring", Only(OFF, BACKEND)),
    Field("disable_aio", Only(OFF, BACKEND)),
    Field("backing_files", Only(OFF, BACKEND)),
    Field("sparse", Only(&["true"], BACKEND)),
    Field("image_type", Only(&["Unknown", "unknown"], BACKEND)),
    Field(
        "lock_granularity",
        Only(&["ByteRange", "byte-range"], BACKEND),
    ),
];

pub(super) const NET: &[Field] = &[
    Field("tap", Only(NEVER, super::LOCAL)),
    // Older clients write these defaults.
    Field("ip", Only(&["192.168.249.1"], super::LOCAL)),
    Field("mask", Only(&["255.255.255.0"], super::LOCAL)),
    Field("host_mac", Only(NEVER, super::LOCAL)),
    Field("fds", Only(NONE, super::LOCAL)),
    Field(
        "vhost_mode",
        Only(
            &["Client", "client"],
            "the backend listens, the monitor connects",
        ),
    ),
    Field("rate_limiter_config", Only(&["{}"], LIMITS)),
    Field("offload_tso", Only(&["true"], BACKEND)),
    Field("offload_ufo", Only(&["true"], BACKEND)),
    Field("offload_csum", Only(&["true"], BACKEND)),
];

const SERIAL: &[Field] = &[Field("iommu", Only(OFF, NO_IOMMU))];

const RNG: &[Field] = &[
    Field("id", Any),
    Field(
        "src",
        Only(
            &["/dev/urandom"],
            "start vhost-device-rng and give its socket in generic_vhost_user",
        ),
    ),
];

const NO_CONSOLE: &str = "there is no virtio console: use the serial port";

const CONSOLE: &[Field] = &[
    Field("id", Any),
    Field("mode", Only(&["Off", "Null", "Tty"], NO_CONSOLE)),
    Field("file", Only(NEVER, NO_CONSOLE)),
    Field("socket", Only(NEVER, NO_CONSOLE)),
];

const DEBUG_CONSOLE: &[Field] = &[
    Field(
        "mode",
        Only(
            &["Off", "Null"],
            "there is no debug console: use the serial port",
        ),
    ),
    Field(
        "file",
        Only(NEVER, "there is no debug console: use the serial port"),
    ),
    Field("iobase", Any),
];

const NO_SMBIOS: &str = "a guest has no SMBIOS tables";

const PLATFORM: &[Field] = &[
    Field("num_pci_segments", Only(&["1"], ONE_SEGMENT)),
    Field("iommu_segments", Only(NONE, NO_IOMMU)),
    Field("iommu_address_width_bits", Any),
    Field("system_serial_number", Only(NEVER, NO_SMBIOS)),
    Field("serial_number", Only(NEVER, NO_SMBIOS)),
    Field("system_uuid", Only(NEVER, NO_SMBIOS)),
    Field("uuid", Only(NEVER, NO_SMBIOS)),
    Field("oem_strings", Only(NONE, NO_SMBIOS)),
    Field("system_manufacturer", Only(NEVER, NO_SMBIOS)),
    Field("system_product_name", Only(NEVER, NO_SMBIOS)),
    Field("system_version", Only(NEVER, NO_SMBIOS)),
    Field("system_family", Only(NEVER, NO_SMBIOS)),
    Field("system_sku_number", Only(NEVER, NO_SMBIOS)),
    Field("chassis_asset_tag", Only(NEVER, NO_SMBIOS)),
    Field("tdx", Only(OFF, "there are no confidential guests")),
    Field("sev_snp", Only(OFF, "there are no confidential guests")),
    Field("iommufd", Only(OFF, "host devices are not passed through")),
    Field(
        "iommufd_fd",
        Only(NEVER, "host devices are not passed through"),
    ),
    Field("vfio_p2p_dma", Any),
];

/// Removes from `object` what `fields` let pass. `path` is what messages call the object, with a dot at its end.
pub(super) fn remove(
    path: &str,
    object: &mut Object,
    fields: &[&'static [Field]],
) -> Result<(), String> {
    for Field(name, rule) in fields.iter().copied().flatten() {
        let Some(value) = object.get_mut(*name) else {
            continue;
        };
        let path = format!("{path}{name}");
        match rule {
            Any => {}
            Only(accepted, _) if accepted.iter().any(|text| says(value, text)) => {}
            Only(_, reason) => return Err(format!("{path}: {reason}")),
            Foreign(fields) => remove_all(&path, value, fields)?,
            Ours(fields) => {
                remove(&format!("{path}."), object_in(&path, value)?, fields)?;
                continue;
            }
            EachOurs(fields) => {
                let list = value
                    .as_array_mut()
                    .ok_or(format!("{path}: a list is expected"))?;
                for (number, value) in list.iter_mut().enumerate() {
                    let path = format!("{path}[{number}]");
                    remove(&format!("{path}."), object_in(&path, value)?, fields)?;
                }
                continue;
            }
        }
        object.remove(*name);
    }
    Ok(())
}

fn remove_all(path: &str, value: &mut Value, fields: &[&'static [Field]]) -> Result<(), String> {
    let object = object_in(path, value)?;
    remove(&format!("{path}."), object, fields)?;
    match object.keys().next() {
        Some(unknown) => Err(format!("{path}.{unknown}: there is no such field")),
        None => Ok(()),
    }
}

fn object_in<'v>(path: &str, value: &'v mut Value) -> Result<&'v mut Object, String> {
    value
        .as_object_mut()
        .ok_or(format!("{path}: an object is expected"))
}

/// Whether `value` is what `text` says. On a command line every value is a string.
fn says(value: &Value, text: &str) -> bool {
    match value {
        Value::String(string) => match string.as_str() {
            "on" => text == "true",
            "off" => text == "false",
            string => string == text,
        },
        value => format!("{value}") == text,
    }
}

/// Removes fields that are null, wherever they are: they say nothing.
pub(super) fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(remove_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::VmConfig;
    use super::*;

    /// What version 54 of Cloud Hypervisor writes for a guest with one of each device there is here.
    fn written_by_its_client() -> Value {
        json!({
            "cpus": {"boot_vcpus": 2, "max_vcpus": 2, "kvm_hyperv": false, "max_phys_bits": 46, "features": {"amx": false},
                "nested": true, "core_scheduling": "Vm", "profile": "Host"},
            "memory": {"size": 67_108_864, "mergeable": false, "hotplug_method": "Acpi", "shared": true, "hugepages": false,
                "prefault": false, "reserve": false, "thp": true},
            "payload": {"kernel": "/k", "cmdline": "console=ttyS0"},
            "disks": [{"id": "disk0", "pci_segment": 0, "readonly": true, "direct": false, "num_queues": 1, "queue_size": 128,
                "vhost_user": true, "vhost_socket": "/vda", "disable_io_uring": false, "disable_aio": false,
                "backing_files": false, "sparse": true, "image_type": "Unknown", "lock_granularity": "ByteRange"}],
            "net": [{"pci_segment": 0, "mac": "52:54:00:00:00:01", "mtu": 1400, "num_queues": 2, "queue_size": 256,
                "vhost_user": true, "vhost_socket": "/net0", "vhost_mode": "Client", "offload_tso": true, "offload_ufo": true,
                "offload_csum": true}],
            "rng": {"pci_segment": 0, "src": "/dev/urandom"},
            "generic_vhost_user": [{"pci_segment": 0, "socket": "/gen", "queue_sizes": [256, 128], "device_type": 26}],
            "fs": [{"pci_segment": 0, "tag": "share", "socket": "/fs", "num_queues": 1, "queue_size": 1024}],
            "serial": {"mode": "Null"},
            "console": {"mode": "Off", "pci_segment": 0},
            "debug_console": {"mode": "Off"},
            "pvpanic": false, "iommu": false, "watchdog": false,
            "platform": {"num_pci_segments": 1, "iommu_address_width_bits": 64, "iommufd": false, "vfio_p2p_dma": true},
            "landlock_enable": false,
            "balloon": null, "vsock": null, "pmem": null, "numa": [],
        })
    }

    fn read(value: &Value) -> Result<Value, String> {
        let config = VmConfig::from_json(value.to_string().as_bytes())?;
        Ok(serde_json::to_value(config).unwrap())
    }

    #[test]
    fn what_its_client_writes_is_taken_and_returned() {
        let config = read(&written_by_its_client()).unwrap();
        assert_eq!(config["cpus"], json!({"boot_vcpus": 2, "max_vcpus": 2}));
        assert_eq!(config["memory"]["shared"], true);
        assert_eq!(
            config["disks"][0],
            json!({"id": "disk0", "vhost_user": true, "vhost_socket": "/vda", "readonly": true, "num_queues": 1, "queue_size": 128})
        );
        assert_eq!(config["net"][0]["id"], "_net1");
        assert_eq!(config["net"][0]["mtu"], 1400);
        assert_eq!(config["fs"][0]["tag"], "share");
        assert_eq!(
            config["generic_vhost_user"][0],
            json!({"id": "_generic_vhost_user3", "device_type": 26, "socket": "/gen", "queue_sizes": [256, 128]})
        );
        // What is returned can be given again.
        assert_eq!(read(&config).unwrap(), config);
    }

    #[test]
    fn what_is_at_its_default_need_not_be_said() {
        let config = read(
            &json!({"payload": {"kernel": "/k"}, "disks": [{"vhost_user": true, "vhost_socket": "/vda"}]}),
        );
        let config = config.unwrap();
        assert_eq!(config["cpus"], json!({"boot_vcpus": 1, "max_vcpus": 1}));
        assert_eq!(config["disks"][0]["num_queues"], 1);
        assert_eq!(config["disks"][0]["id"], "_disk0");
    }

    #[test]
    fn what_cannot_be_had_is_refused_by_name_and_reason() {
        for (pointer, value, named) in [
            ("/watchdog", json!(true), "watchdog: there is no watchdog"),
            ("/iommu", json!(true), "iommu: "),
            (
                "/rng/src",
                json!("/dev/hwrng"),
                "rng.src: start vhost-device-rng",
            ),
            ("/rng/odd", json!(1), "rng.odd: there is no such field"),
            (
                "/console/mode",
                json!("Pty"),
                "console.mode: there is no virtio console",
            ),
            ("/console/file", json!("/x"), "console.file: "),
            ("/debug_console/mode", json!("Tty"), "debug_console.mode: "),
            ("/serial/mode", json!("Pty"), "Pty"),
            ("/serial/odd", json!(1), "odd"),
            (
                "/platform/num_pci_segments",
                json!(2),
                "platform.num_pci_segments: ",
            ),
            ("/platform/uuid", json!("x"), "platform.uuid: "),
            ("/platform", json!([]), "platform: an object"),
            ("/cpus/kvm_hyperv", json!(true), "cpus.kvm_hyperv: "),
            ("/cpus/nested", json!(false), "cpus.nested: "),
            ("/cpus/features/amx", json!(true), "cpus.features.amx: "),
            ("/memory/prefault", json!(true), "memory.prefault: "),
            (
                "/memory/hotplug_size",
                json!(1 << 30),
                "memory.hotplug_size: ",
            ),
            ("/memory/zones", json!([{"id": "z"}]), "memory.zones: "),
            ("/payload/firmware", json!("/f"), "payload.firmware: "),
            (
                "/disks/0/path",
                json!("/image"),
                "disks[0].path: this monitor opens no image",
            ),
            (
                "/disks/0/direct",
                json!(true),
                "disks[0].direct: the backend decides",
            ),
            ("/disks/0/iommu", json!(true), "disks[0].iommu: "),
            ("/disks/0/pci_segment", json!(1), "disks[0].pci_segment: "),
            (
                "/disks/0/pci_device_id",
                json!(4),
                "disks[0].pci_device_id: ",
            ),
            ("/disks/0/serial", json!("x"), "disks[0].serial: "),
            ("/disks/0/odd", json!(1), "odd"),
            ("/net/0/tap", json!("tap0"), "net[0].tap: "),
            (
                "/net/0/host_mac",
                json!("52:54:00:00:00:02"),
                "net[0].host_mac: ",
            ),
            ("/net/0/offload_tso", json!(false), "net[0].offload_tso: "),
            ("/net/0/mtu", json!(1), "--net: mtu: "),
            (
                "/net/0/id",
                json!("disk0"),
                "two devices are called `disk0`",
            ),
            ("/fs/0/num_queues", json!(0), "--fs: num_queues"),
            (
                "/generic_vhost_user/0/queue_sizes",
                json!([3]),
                "--vhost-user: queue_size",
            ),
            (
                "/generic_vhost_user/0/device_type",
                json!(0),
                "`0` is not a virtio device type",
            ),
            ("/balloon", json!({"size": 1}), "balloon: "),
            (
                "/vsock",
                json!({"cid": 3, "socket": "/s"}),
                "vsock: start vhost-device-vsock",
            ),
            ("/devices", json!([{"path": "/sys"}]), "devices: "),
            ("/odd", json!(1), "odd"),
        ] {
            let mut config = written_by_its_client();
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap()[name] = value;
            let error = read(&config).unwrap_err();
            assert!(error.contains(named), "{pointer}: {error}");
        }
    }

    #[test]
    fn a_command_line_has_the_same_fields() {
        let disk = "vhost_user=on,socket=/s,readonly=off,direct=off,iommu=off";
        assert!(disk.parse::<super::super::DiskConfig>().is_ok());
        let error = "vhost_user=on,socket=/s,direct=on".parse::<super::super::DiskConfig>();
        assert!(error.unwrap_err().starts_with("direct: "));
        assert!(
            "size=1G,shared=on,mergeable=off"
                .parse::<super::super::MemoryConfig>()
                .is_ok()
        );
    }
}
