//! An unmodified Linux on `bulkhead-block`, with QEMU between them: the driver that most guests have, and a frontend
//! that is not ours.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]
#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::process::Command;

use bulkhead_tests::guest::{Backend, Format, Image, is_installed};
use bulkhead_tests::guest_linux;
use bulkhead_tests::linux_under_qemu::LinuxUnderQemu;
use bulkhead_tests::workplace::Workplace;

const SIZE: usize = 32 << 20;

/// Both disks: read, write, discard; then writers that go on while their backend is killed, and a look at what they
/// wrote.
const SCRIPT: &str = r#"
for disk in vda vdb; do
  say value $disk.serial "$(cat /sys/block/$disk/serial)"
  say value $disk.queues $(ls /sys/block/$disk/mq | wc -l)
  say value $disk.cache "$(cat /sys/block/$disk/queue/write_cache)"
done
dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null
dd if=/dev/zero of=/tmp/zero bs=1M count=1 2>/dev/null
for disk in vda vdb; do
  dd if=/tmp/data of=/dev/$disk bs=64k conv=fsync 2>/dev/null || fail $disk write
  blkdiscard -o 1048576 -l 1048576 /dev/$disk || fail $disk discard
  dd if=/dev/$disk bs=1M skip=1 count=1 iflag=direct 2>/dev/null | cmp - /tmp/zero || fail $disk discarded
  dd if=/dev/$disk bs=1M skip=2 count=2 iflag=direct 2>/dev/null >/tmp/seen
  dd if=/tmp/data bs=1M skip=2 2>/dev/null | cmp - /tmp/seen || fail $disk read
done
say ok io
for disk in vda vdb; do for part in 0 1; do
  ( for round in 1 2 3; do
      dd if=/tmp/data of=/dev/$disk bs=32k seek=$((256 + part * 384 + round * 128 - 128)) oflag=direct 2>/tmp/why ||
        fail $disk write: $(cat /tmp/why)
      say round $disk
    done ) &
done; done
wait
echo 3 >/proc/sys/vm/drop_caches
for disk in vda vdb; do for at in 0 1 2 3 4 5; do
  dd if=/dev/$disk bs=4M skip=$((2 + at)) count=1 iflag=direct 2>/dev/null | cmp - /tmp/data || fail $disk differs at $at
done; done
say value hash $(sha256sum </tmp/data)
say verified
"#;

/// The arguments for a disk with each of these.
fn devices(disks: [&Backend; 2]) -> Vec<String> {
    let mut arguments = Vec::new();
    for (name, disk) in ["a", "b"].iter().zip(disks) {
        let socket = disk.socket().display();
        arguments.extend([
            "-chardev".to_owned(),
            format!("socket,id={name},path={socket},reconnect-ms=10"),
            "-device".to_owned(),
            format!("vhost-user-blk-pci,chardev={name},num-queues=2"),
        ]);
    }
    arguments
}

#[test]
fn linux_loses_nothing_when_its_disks_are_killed() {
    const TEST: &str = "linux_loses_nothing_when_its_disks_are_killed";
    let workplace = Workplace::find().unwrap();
    let kernel = match workplace.kernel() {
        Ok(kernel) => kernel,
        Err(error) => return eprintln!("skipped: {TEST}: {error:#}"),
    };
    if !is_installed("qemu-system-x86_64", TEST) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let initramfs = folder.path().join("initramfs");
    guest_linux::build(&kernel, SCRIPT, &[], &initramfs).unwrap();
    let raw = Image::with_pattern(folder.path(), "raw", Format::Raw, SIZE, 5);
    let base = Image::with_pattern(folder.path(), "base", Format::Qcow2, SIZE, 6);
    let overlay = base.overlay(folder.path(), "overlay");
    let base_before = std::fs::read(base.path()).unwrap();
    let serve = |name, image, serial| {
        let more = ["--num-queues", "2", "--serial", serial];
        Backend::block(folder.path(), name, image, &more)
    };
    let mut vda = serve("vda", &raw, "disk-a");
    let mut vdb = serve("vdb", &overlay, "disk-b");

    let mut guest = LinuxUnderQemu::start(&kernel.bzimage(), &initramfs, &devices([&vda, &vdb]));
    guest.expect("up");
    for (disk, serial) in [("vda", "disk-a"), ("vdb", "disk-b")] {
        guest.expect(&format!("value {disk}.serial {serial}"));
        guest.expect(&format!("value {disk}.queues 2"));
        guest.expect(&format!("value {disk}.cache write back"));
    }
    guest.expect("ok io");
    let mut hash = None;
    // Whenever a writer has come around, the others are in the middle of it.
    while let Some(word) = guest.next_word() {
        match word.as_str() {
            "round vda" => vda.kill_and_restart(),
            "round vdb" => vdb.kill_and_restart(),
            "verified" => break,
            other => hash = other.strip_prefix("value hash ").map(str::to_owned),
        }
    }
    guest.expect_end();

    for backend in [vda, vdb] {
        let (status, said) = backend.wait();
        assert!(status.success(), "{status}: {said}");
    }
    // A process that is killed may leave clusters that nothing uses (3), and nothing worse.
    let check = Command::new("qemu-img")
        .args(["check", "-q", "-f", "qcow2"])
        .arg(overlay.path())
        .output()
        .unwrap();
    assert!(matches!(check.status.code(), Some(0 | 3)), "{check:?}");
    assert!(std::fs::read(base.path()).unwrap() == base_before);
    let hash = hash.unwrap();
    let hash = hash.split_whitespace().next().unwrap();
    for image in [&raw, &overlay] {
        let contents = image.contents();
        for part in contents[8 << 20..].chunks(4 << 20) {
            assert_eq!(bulkhead_tests::hash::of(part), hash);
        }
    }
}
