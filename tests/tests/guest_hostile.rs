//! Guests that mean harm: whatever they do to their devices, monitor and backends go on.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use bulkhead_tests::guest::{
    Backend, Format, Image, Machine, disk, in_own_namespace, ip, kvm_is_usable, net, serve_inverted,
};

const SEEDS: u64 = 4;

#[test]
fn a_block_device_driven_wrongly_can_be_reset_and_used() {
    if !kvm_is_usable("a_block_device_driven_wrongly_can_be_reset_and_used") {
        return;
    }
    for seed in 0..SEEDS {
        let folder = tempfile::tempdir().unwrap();
        let image = Image::with_pattern(folder.path(), "disk", Format::Qcow2, 1 << 20, seed);
        let backend = Backend::block(folder.path(), "vda", &image, &[]);
        let test = format!("test=hostile-driver,blk rounds=200 seed={seed}");
        let mut machine = Machine::start(&test, &disk(&backend));
        machine.expect("hostile rounds");
        machine.expect("blk read-back");
        machine.expect_success();
        assert!(backend.wait().0.success());
        image.check();
    }
}

#[test]
fn a_network_device_driven_wrongly_can_be_reset_and_used() {
    const TEST: &str = "a_network_device_driven_wrongly_can_be_reset_and_used";
    if !kvm_is_usable(TEST) {
        return;
    }
    in_own_namespace(TEST, || {
        ip("tuntap add tap0 mode tap vnet_hdr");
        ip("address add 10.9.0.1/24 dev tap0");
        ip("link set tap0 up");
        let _answers = serve_inverted("10.9.0.1:7");
        for seed in 0..SEEDS {
            let folder = tempfile::tempdir().unwrap();
            let backend = Backend::net(folder.path(), "net0", &["--tap", "tap0"]);
            let test = format!(
                "test=hostile-driver,net device=net rounds=200 ip=10.9.0.2 peer=10.9.0.1 n=64 seed={seed}"
            );
            let mut machine = Machine::start(&test, &net(&backend, ""));
            machine.expect("hostile rounds");
            machine.expect("net udp");
            machine.expect_success();
            assert!(backend.wait().0.success());
        }
    });
}

#[test]
fn registers_written_at_random_end_neither_monitor_nor_backend() {
    if !kvm_is_usable("registers_written_at_random_end_neither_monitor_nor_backend") {
        return;
    }
    for seed in 0..SEEDS {
        let folder = tempfile::tempdir().unwrap();
        let image = Image::with_pattern(folder.path(), "disk", Format::Raw, 1 << 20, seed);
        let backend = Backend::block(folder.path(), "vda", &image, &[]);
        let test = format!("test=hostile n=10000 seed={seed}");
        let mut machine = Machine::start(&test, &disk(&backend));
        machine.expect("hostile accesses");
        machine.expect_success();
        assert!(backend.wait().0.success());
    }
}
