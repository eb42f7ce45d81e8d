//! A bare-metal guest, the monitor and `bulkhead-block`, all real, on this machine's KVM.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

use bulkhead_tests::guest::{
    Backend, Format, Image, Machine, SECTOR, crc32, disk, exit_count, kvm_is_usable, pattern,
};

const IMAGE_SIZE: usize = 4 << 20;
const SEED: u64 = 7;
/// The seed of what the guest writes by default.
const GUEST_SEED: u64 = 1;

fn machine(words: &str, backend: &Backend, more: &[&str]) -> Machine {
    let mut arguments: Vec<OsString> = disk(backend).to_vec();
    arguments.extend(more.iter().map(OsString::from));
    Machine::start(words, &arguments)
}

/// Lets a guest read, write, flush and read back, and compares with the image.
fn round_trip(folder: &Path, image: &Image, words: &str) {
    const READ: u64 = 1000;
    const AT: u64 = 3001;
    const WRITE: u64 = 777;
    let mut expected = image.contents();
    let backend = Backend::block(folder, "vda", image, &[]);
    let words = format!("test=blk read={READ} at={AT} write={WRITE} {words}");
    let mut machine = machine(&words, &backend, &[]);

    let found = machine.expect("blk sectors");
    assert_eq!(found.number("sectors"), IMAGE_SIZE as u64 / SECTOR);
    assert_eq!(found.value("read-only"), "false");
    let read = machine.expect("blk read ");
    assert_eq!(
        read.number("crc32"),
        crc32(&expected[..(READ * SECTOR) as usize])
    );
    let written = pattern(GUEST_SEED, AT * SECTOR, (WRITE * SECTOR) as usize);
    assert_eq!(machine.expect("blk wrote").number("crc32"), crc32(&written));
    assert_eq!(
        machine.expect("blk read-back").number("crc32"),
        crc32(&written)
    );
    assert!(machine.expect("blk interrupts").number("interrupts") > 0);
    machine.expect_success();

    let (status, errors) = backend.wait();
    assert_eq!((status.code(), errors.as_str()), (Some(0), ""));
    expected[(AT * SECTOR) as usize..][..written.len()].copy_from_slice(&written);
    assert!(
        image.contents() == expected,
        "the image does not hold what the guest wrote"
    );
    image.check();
}

#[test]
fn a_raw_image_is_read_written_and_flushed() {
    if !kvm_is_usable("a_raw_image_is_read_written_and_flushed") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = Image::with_pattern(folder.path(), "disk", Format::Raw, IMAGE_SIZE, SEED);
    round_trip(folder.path(), &image, "");
    round_trip(folder.path(), &image, "size=1 depth=1 pci=ports");
}

#[test]
fn a_qcow2_image_is_read_written_and_flushed() {
    if !kvm_is_usable("a_qcow2_image_is_read_written_and_flushed") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = Image::with_pattern(folder.path(), "disk", Format::Qcow2, IMAGE_SIZE, SEED);
    round_trip(folder.path(), &image, "");
}

#[test]
fn an_overlay_takes_the_writes_and_its_base_stays_as_it_was() {
    if !kvm_is_usable("an_overlay_takes_the_writes_and_its_base_stays_as_it_was") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let base = Image::with_pattern(folder.path(), "base", Format::Qcow2, IMAGE_SIZE, SEED);
    let before = std::fs::read(base.path()).unwrap();
    let overlay = base.overlay(folder.path(), "overlay");
    round_trip(folder.path(), &overlay, "size=3");
    assert!(
        std::fs::read(base.path()).unwrap() == before,
        "the base has changed"
    );
}

#[test]
fn a_read_only_disk_says_so() {
    if !kvm_is_usable("a_read_only_disk_says_so") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = Image::with_pattern(folder.path(), "disk", Format::Raw, IMAGE_SIZE, SEED);
    let backend = Backend::block(
        folder.path(),
        "vda",
        &image,
        &["--read-only", "--serial", "the serial"],
    );
    let mut machine = machine("test=blk read=8 write=0", &backend, &[]);
    let found = machine.expect("blk sectors");
    assert_eq!(found.value("read-only"), "true");
    assert!(found.0.ends_with("serial=the serial"), "{found:?}");
    machine.expect_success();
}

#[test]
fn a_device_can_be_reset_and_used_again() {
    if !kvm_is_usable("a_device_can_be_reset_and_used_again") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = Image::with_pattern(folder.path(), "disk", Format::Qcow2, IMAGE_SIZE, SEED);
    let backend = Backend::block(folder.path(), "vda", &image, &[]);
    let mut machine = machine("test=blk,blk,blk", &backend, &[]);
    let expected = crc32(&pattern(SEED, 0, 128 * SECTOR as usize));
    for _ in 0..3 {
        assert_eq!(machine.expect("blk read ").number("crc32"), expected);
    }
    machine.expect_success();
    assert!(backend.wait().0.success());
    image.check();
}

#[test]
fn a_masked_interrupt_waits_and_a_rerouted_one_arrives() {
    if !kvm_is_usable("a_masked_interrupt_waits_and_a_rerouted_one_arrives") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = Image::with_pattern(folder.path(), "disk", Format::Raw, IMAGE_SIZE, SEED);
    let backend = Backend::block(folder.path(), "vda", &image, &[]);
    let mut machine = machine("test=blk-msix", &backend, &[]);
    let line = machine.expect("blk-msix");
    assert_eq!((line.number("pending"), line.number("rerouted")), (1, 1));
    machine.expect_success();
}

#[test]
fn disks_appear_in_the_order_of_the_arguments() {
    if !kvm_is_usable("disks_appear_in_the_order_of_the_arguments") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = Vec::new();
    let backends: Vec<Backend> = (0..3)
        .map(|number| {
            let name = format!("disk{number}");
            let image = Image::with_pattern(folder.path(), &name, Format::Raw, IMAGE_SIZE, number);
            let backend = Backend::block(folder.path(), &name, &image, &[]);
            arguments.extend(disk(&backend));
            backend
        })
        .collect();
    let mut machine = Machine::start("test=blk read=64 write=0 disk=2", &arguments);
    let expected = crc32(&pattern(2, 0, 64 * SECTOR as usize));
    assert_eq!(machine.expect("blk read ").number("crc32"), expected);
    machine.expect_success();
    drop(backends);
}

#[test]
fn random_writes_are_found_again() {
    if !kvm_is_usable("random_writes_are_found_again") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = Image::with_pattern(folder.path(), "disk", Format::Qcow2, IMAGE_SIZE, SEED);
    let backend = Backend::block(folder.path(), "vda", &image, &[]);
    let mut machine = machine("test=blk-stress n=500 span=8192", &backend, &[]);
    let end = machine.expect("blk-stress sectors");
    machine.expect_success();
    assert!(backend.wait().0.success());
    assert_eq!(end.number("crc32"), crc32(&image.contents()));
    image.check();
}

#[test]
fn guest_io_does_not_wake_the_monitor() {
    const REQUESTS: u64 = 10_000;
    if !kvm_is_usable("guest_io_does_not_wake_the_monitor") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = Image::with_pattern(folder.path(), "disk", Format::Raw, IMAGE_SIZE, SEED);
    image.write_at(0, &[0; 2 * SECTOR as usize]);
    let backend = Backend::block(folder.path(), "vda", &image, &[]);
    let api = folder.path().join("api.sock");
    let api_argument = format!("path={}", api.display());
    let words = format!("test=idle-io n={REQUESTS}");
    let mut machine = machine(&words, &backend, &["--api-socket", &api_argument]);
    machine.expect("idle-io ready");
    // The guest prints nothing more before it reads "end".
    let before = exit_count(&api);
    assert!(
        before > 0,
        "the lines so far have been written without a return of KVM_RUN"
    );

    image.write_at(0, b"go");
    while image.read_at(SECTOR, 4) != b"done" {
        std::thread::yield_now();
    }
    let after = exit_count(&api);
    image.write_at(0, b"end");

    let end = machine.expect("idle-io requests");
    machine.expect_success();
    assert_eq!(end.number("interrupts"), REQUESTS);
    assert_eq!(
        after - before,
        0,
        "KVM_RUN returned during {REQUESTS} requests"
    );
}

#[test]
fn a_backend_killed_during_io_is_a_pause_and_not_an_error() {
    const KILLS: usize = 8;
    if !kvm_is_usable("a_backend_killed_during_io_is_a_pause_and_not_an_error") {
        return;
    }
    for format in [Format::Raw, Format::Qcow2] {
        let folder = tempfile::tempdir().unwrap();
        let image = Image::with_pattern(folder.path(), "disk", format, IMAGE_SIZE, SEED);
        let mut backend = Backend::block(folder.path(), "vda", &image, &[]);
        let mut machine = machine("test=blk-stress n=2000 span=8192", &backend, &[]);
        for _ in 0..KILLS {
            machine.expect("blk-stress round");
            backend.kill_and_restart();
        }
        let end = machine.expect("blk-stress sectors");
        machine.expect_success_after_losing_backend(KILLS);
        assert!(backend.wait().0.success());
        assert_eq!(end.number("crc32"), crc32(&image.contents()), "{format:?}");
        image.check();
    }
}

#[test]
fn a_guest_whose_backend_is_gone_can_power_off() {
    if !kvm_is_usable("a_guest_whose_backend_is_gone_can_power_off") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = Image::with_pattern(folder.path(), "disk", Format::Raw, IMAGE_SIZE, SEED);
    let backend = Backend::block(folder.path(), "vda", &image, &[]);
    let (mut machine, mut input) = Machine::start_with_input("test=blk,echo", &disk(&backend));
    machine.expect("echo ready");
    backend.kill();
    input.write_all(b"go on\n").unwrap();
    machine.expect("echo go on");
    let said = machine.expect_end();
    // Whether the monitor notices before it ends is a race.
    assert!(said.lines().all(|line| line.contains("is gone")), "{said}");
}
