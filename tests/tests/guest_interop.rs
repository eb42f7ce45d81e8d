//! Our backends under QEMU, and QEMU's backend under our monitor, with the bare-metal guest in both.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::ffi::OsString;
use std::path::Path;

use bulkhead_tests::guest::{
    Answers, Backend, Format, Image, Machine, SECTOR, crc32, datagram, disk, in_own_namespace, ip,
    is_installed, kvm_is_usable, pattern, serve_inverted,
};

const IMAGE_SIZE: usize = 4 << 20;
const SEED: u64 = 11;
const MAC: &str = "52:54:00:12:34:57";

fn words(text: &str) -> Vec<OsString> {
    text.split_whitespace().map(OsString::from).collect()
}

/// What the guest has said of its disk, and what is in the image, when it has written 128 sectors behind the first 128.
fn check_disk(mut machine: Machine, image: &Image, backend: Backend) {
    let expected = [
        pattern(SEED, 0, 128 * SECTOR as usize),
        pattern(1, 128 * SECTOR, 128 * SECTOR as usize),
    ];
    assert_eq!(
        machine.expect("blk read ").number("crc32"),
        crc32(&expected[0])
    );
    assert_eq!(
        machine.expect("blk read-back").number("crc32"),
        crc32(&expected[1])
    );
    machine.expect_success();
    drop(backend);
    assert!(
        image.contents().starts_with(&expected.concat()),
        "not what the guest wrote"
    );
    image.check();
}

fn qemu_disk(socket: &Path, more: &str) -> Vec<OsString> {
    words(&format!(
        "-chardev socket,id=disk,path={}{more} -device vhost-user-blk-pci,chardev=disk,disable-legacy=on",
        socket.display()
    ))
}

#[test]
fn bulkhead_block_serves_qemu() {
    const TEST: &str = "bulkhead_block_serves_qemu";
    if !is_installed("qemu-system-x86_64", TEST) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::Raw, Format::Qcow2] {
        let image = Image::with_pattern(folder.path(), format.name(), format, IMAGE_SIZE, SEED);
        let backend = Backend::block(folder.path(), format.name(), &image, &[]);
        let machine = Machine::start_qemu("test=blk", &qemu_disk(backend.socket(), ""));
        check_disk(machine, &image, backend);
    }
}

#[test]
fn bulkhead_block_may_be_killed_under_qemu() {
    const TEST: &str = "bulkhead_block_may_be_killed_under_qemu";
    if !is_installed("qemu-system-x86_64", TEST) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = Image::with_pattern(folder.path(), "disk", Format::Qcow2, IMAGE_SIZE, SEED);
    let mut backend = Backend::block(folder.path(), "disk", &image, &[]);
    let arguments = qemu_disk(backend.socket(), ",reconnect-ms=10");
    let mut machine = Machine::start_qemu("test=blk-stress n=2000 span=8192", &arguments);
    for _ in 0..4 {
        machine.expect("blk-stress round");
        backend.kill_and_restart();
    }
    let end = machine.expect("blk-stress sectors");
    // QEMU warns on standard error about backends that vanish.
    machine.expect_end();
    drop(backend);
    assert_eq!(end.number("crc32"), crc32(&image.contents()));
    image.check();
}

#[test]
fn bulkhead_net_serves_qemu() {
    const COUNT: u64 = 200;
    const TEST: &str = "bulkhead_net_serves_qemu";
    if !is_installed("qemu-system-x86_64", TEST) {
        return;
    }
    in_own_namespace(TEST, || {
        ip("tuntap add tap0 mode tap vnet_hdr");
        ip("address add 10.9.0.1/24 dev tap0");
        ip("link set tap0 up");
        let answers: Answers = serve_inverted("10.9.0.1:7");
        let folder = tempfile::tempdir().unwrap();
        let backend = Backend::net(folder.path(), "net0", &["--tap", "tap0"]);
        let arguments = words(&format!(
            "-chardev socket,id=net,path={} -netdev vhost-user,id=net,chardev=net \
             -device virtio-net-pci,netdev=net,mac={MAC},disable-legacy=on",
            backend.socket().display()
        ));
        let test = format!("test=net ip=10.9.0.2 peer=10.9.0.1 n={COUNT}");
        let mut machine = Machine::start_qemu(&test, &arguments);
        assert_eq!(machine.expect("net mac").value("mac"), MAC);
        // QEMU warns that it gives the configuration space itself.
        machine.expect_end();
        let expected: Vec<Vec<u8>> = (0..COUNT)
            .map(|index| datagram(SEED_OF_GUEST, index))
            .collect();
        assert!(answers.received() == expected, "not what the guest sent");
    });
}

const SEED_OF_GUEST: u64 = 1;

#[test]
fn the_monitor_takes_the_backend_of_qemu() {
    const TEST: &str = "the_monitor_takes_the_backend_of_qemu";
    if !kvm_is_usable(TEST) || !is_installed("qemu-storage-daemon", TEST) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = Image::with_pattern(folder.path(), "disk", Format::Qcow2, IMAGE_SIZE, SEED);
    let backend = Backend::qemu(folder.path(), "disk", &image);
    let machine = Machine::start("test=blk", &disk(&backend));
    check_disk(machine, &image, backend);
}
