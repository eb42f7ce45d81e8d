//! A guest whose disk's backend is killed again and again: no data is lost, and no memory of the guest changes but
//! what it asked for.
//!
//! `GUEST_KILLS` says how many kills there are for each backend and number of vCPUs.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on has failed

use std::ffi::OsString;

use bulkhead_tests::guest::{
    Backend, Format, Image, Machine, crc32, disk, is_installed, kvm_is_usable,
};

const IMAGE_SIZE: usize = 4 << 20;
const SEED: u64 = 13;
/// Rounds of requests between two kills.
const ROUNDS: u32 = 100;
const DEFAULT_KILLS: u32 = 12;

fn many_deaths(mut backend: Backend, image: &Image, cpus: u32) {
    let kills: u32 = std::env::var("GUEST_KILLS")
        .map_or(DEFAULT_KILLS, |value| value.parse().expect("a number"));
    let words = format!(
        "test=smp,blk-stress n={} reports={} span=8192",
        ROUNDS * (kills + 1),
        kills + 1
    );
    let mut arguments: Vec<OsString> = disk(&backend).to_vec();
    arguments.extend(["--cpus".into(), format!("boot={cpus}").into()]);
    let mut machine = Machine::start(&words, &arguments);
    for _ in 0..kills {
        machine.expect("blk-stress round");
        backend.kill_and_restart();
    }
    let end = machine.expect("blk-stress sectors");
    machine.expect_end();
    drop(backend);
    assert_eq!(end.number("crc32"), crc32(&image.contents()));
    image.check();
    println!("{kills} kills, {cpus} vCPUs");
}

#[test]
fn bulkhead_block_dies_many_times() {
    if !kvm_is_usable("bulkhead_block_dies_many_times") {
        return;
    }
    for cpus in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let image = Image::with_pattern(folder.path(), "disk", Format::Qcow2, IMAGE_SIZE, SEED);
        let backend = Backend::block(folder.path(), "vda", &image, &[]);
        many_deaths(backend, &image, cpus);
    }
}

/// It keeps no record of what is in flight: the monitor goes on where the used ring ends.
#[test]
fn the_backend_of_qemu_dies_many_times() {
    const TEST: &str = "the_backend_of_qemu_dies_many_times";
    if !kvm_is_usable(TEST) || !is_installed("qemu-storage-daemon", TEST) {
        return;
    }
    for cpus in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let image = Image::with_pattern(folder.path(), "disk", Format::Raw, IMAGE_SIZE, SEED);
        let backend = Backend::qemu(folder.path(), "disk", &image);
        many_deaths(backend, &image, cpus);
    }
}
