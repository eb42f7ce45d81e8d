//! The fields of Cloud Hypervisor's configuration that this monitor does not have. A value that is the default, or asks
//! for what happens here anyway, is accepted and removed. Any other is refused by name, with a reason.

use serde_json::{Map, Value};

type Object = Map<String, Value>;

/// A field of an object, and the rule for it.
pub(super) struct Field(&'static str, Rule);

enum Rule {
    /// Accepted if it is one of these values, as JSON or as on a command line. Otherwise refused for this reason.
    Only(&'static [&'static str], &'static str),
    /// Accepted: no value makes a difference here.
    Any,
    /// An object that this monitor does not have.
    Foreign(&'static [&'static [Field]]),
    /// An object that this monitor has, with more fields.
    Ours(&'static [&'static [Field]]),
    /// A list of such objects.
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
    // This process is always confined.
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
    // Shared memory has no transparent huge pages.
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
    // Older clients send these defaults.
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

/// Removes the accepted `fields` from `object`. `path` is the object's name in messages, with a dot at its end.
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

/// Whether `value` is `text`. On a command line every value is a string.
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

/// Removes all fields that are null, since they have no meaning.
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
#[path = "contract_tests.rs"]
mod tests;
