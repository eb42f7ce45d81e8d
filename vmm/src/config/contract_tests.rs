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
