//! The journal beside a qcow2 image: when it is found after a kill, when it is refused, and what others may do to it.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::fs::{File, OpenOptions as FileOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use peer::killed::{
    SIZE, go_on_without, has_all, image, is_sound_and_closed, journal_of, killed, open, refused,
};
use peer::{Backend, Guest, RING_SIZE};
use qcow::{Format, Image, OpenOptions, Repair};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;

#[test]
fn it_is_private_and_is_removed_at_an_orderly_end() {
    use std::os::unix::fs::MetadataExt;
    for by in ["disconnect", "SIGTERM"] {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path());
        let backend = Backend::start(&image, "qcow2", &[]);
        let facts = std::fs::symlink_metadata(journal_of(&image)).unwrap();
        assert_eq!((facts.mode() & 0o7777, facts.nlink()), (0o600, 1));
        let mut guest = Guest::connect(&backend, 1);
        guest.write(0, &[7; 4096]);
        if by == "SIGTERM" {
            let pid = rustix::process::Pid::from_child(&backend.child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        } else {
            drop(guest);
        }
        let (status, said) = backend.end();
        assert!(status.success(), "{said}");
        is_sound_and_closed(&image);
    }
}

#[test]
fn a_backend_with_another_socket_finds_it() {
    let (_folder, image, mut backend, mut guest) = killed();
    backend.restart_elsewhere(&image, "qcow2");
    guest.reconnect(&backend);
    for block in 0..20u64 {
        assert_eq!(guest.read(block * 256, 4096), [1 + block as u8; 4096]);
    }
    drop(guest);
    assert!(backend.end().0.success());
    is_sound_and_closed(&image);
}

#[test]
fn a_reader_sees_what_is_in_it_and_changes_nothing() {
    let (_folder, image, _backend, _guest) = killed();
    let before = (
        std::fs::read(&image).unwrap(),
        std::fs::read(journal_of(&image)).unwrap(),
    );
    for locking in [qcow::Locking::Exclusive, qcow::Locking::Shared] {
        let options = OpenOptions::new(Format::Qcow2).locking(locking);
        let reader = Image::open(&image, &options).unwrap();
        assert!(has_all(&reader));
        let found = reader.check(Repair::None).unwrap();
        assert!(found.is_sound() && found.leaks == 0, "{:?}", found.messages);
    }
    let after = (
        std::fs::read(&image).unwrap(),
        std::fs::read(journal_of(&image)).unwrap(),
    );
    assert!(before == after);

    // As a backing file, too.
    let overlay = image.with_file_name("overlay.qcow2");
    let mut options = qcow::CreateOptions::new(Format::Qcow2, SIZE);
    options.backing_file = Some("disk.qcow2".into());
    options.backing_format = Some(Format::Qcow2);
    qcow::create(&overlay, &options).unwrap();
    let options = OpenOptions::new(Format::Qcow2).follow_references();
    assert!(has_all(&Image::open(&overlay, &options).unwrap()));
}

#[test]
fn a_file_too_large_to_be_checked_as_a_whole_has_one_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(folder.path());
    let file = FileOptions::new().write(true).open(&image).unwrap();
    file.set_len(200 << 30).unwrap();
    drop(file);
    let mut backend = Backend::start(&image, "qcow2", &[]);
    assert!(journal_of(&image).exists());
    let mut guest = Guest::connect(&backend, 1);
    for block in 0..20u64 {
        guest.write(block * 256, &[1 + block as u8; 4096]);
    }
    backend.kill();
    assert!(has_all(&open(&image, false).unwrap()));
    backend.restart_elsewhere(&image, "qcow2");
    guest.reconnect(&backend);
    assert_eq!(guest.read(256, 4096), [2; 4096]);
    drop(guest);
    assert!(backend.end().0.success());
    assert!(has_all(&open(&image, true).unwrap()));
    is_sound_and_closed(&image);
}

#[test]
fn any_writer_takes_it_over_and_the_next_backend_goes_on_from_there() {
    for for_check in [false, true] {
        let (_folder, image, mut backend, mut guest) = killed();
        let options = OpenOptions::new(Format::Qcow2)
            .writable(true)
            .for_check(for_check);
        let writer = Image::open(&image, &options).unwrap();
        if for_check {
            assert!(writer.check(Repair::All).unwrap().is_sound());
        }
        assert!(has_all(&writer));
        writer.close().unwrap();
        is_sound_and_closed(&image);

        backend.restart_elsewhere(&image, "qcow2");
        guest.reconnect(&backend);
        assert_eq!(guest.read(256, 4096), [2; 4096]);
        guest.write(256, &[9; 4096]);
        drop(guest);
        assert!(backend.end().0.success());
        is_sound_and_closed(&image);
    }
}

#[test]
fn it_does_not_count_once_qemu_has_written_the_image() {
    let (_folder, image, mut backend, mut guest) = killed();
    let written = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 0x55 16M 1M"])
        .arg(&image)
        .output()
        .unwrap();
    assert!(written.status.success(), "{written:?}");
    let before = open(&image, false).unwrap();
    assert!(!has_all(&before));
    drop(before);
    backend.restart_elsewhere(&image, "qcow2");
    guest.reconnect(&backend);
    assert_eq!(guest.read(32768, 4096), [0x55; 4096]);
    drop(guest);
    assert!(backend.end().0.success());
    is_sound_and_closed(&image);
}

#[test]
fn one_of_another_image_is_not_believed_nor_by_a_copy() {
    let (_folder, image, ..) = killed();
    let (_other_folder, other, ..) = killed();
    std::fs::copy(journal_of(&other), journal_of(&image)).unwrap();
    let said = open(&image, false).unwrap_err().to_string();
    assert!(said.contains("is not in the folder of the image"), "{said}");
    // A copy of the image with a copy of its journal is refused, too.
    let copy = other.with_file_name("copy.qcow2");
    std::fs::copy(&other, &copy).unwrap();
    std::fs::copy(journal_of(&other), journal_of(&copy)).unwrap();
    for writable in [false, true] {
        let said = open(&copy, writable).unwrap_err().to_string();
        assert!(said.contains("a copy of an image in use"), "{said}");
    }
    go_on_without(&copy);
    is_sound_and_closed(&copy);
    let whole = open(&other, true).unwrap();
    assert!(has_all(&whole), "the copy has taken nothing from it");
}

#[test]
fn one_that_is_cut_off_is_an_error_until_a_repair_goes_on_without() {
    for length in [0, 100, 4096, 1 << 20] {
        let (_folder, image, mut backend, mut guest) = killed();
        let journal = FileOptions::new()
            .write(true)
            .open(journal_of(&image))
            .unwrap();
        journal.set_len(length).unwrap();
        let said = refused(&image);
        assert!(
            said.contains("disk.qcow2.bulkhead-journal is damaged"),
            "{said}"
        );
        assert!(open(&image, false).is_err());
        go_on_without(&image);
        backend.restart_elsewhere(&image, "qcow2");
        guest.reconnect(&backend);
        drop(guest);
        assert!(backend.end().0.success());
        is_sound_and_closed(&image);
    }
}

#[test]
fn what_somebody_else_put_in_its_place_is_neither_followed_nor_changed() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("precious");
    std::fs::write(&target, b"precious").unwrap();
    let shell = |line: &str| {
        let done = Command::new("sh")
            .args(["-c", line])
            .current_dir(folder.path())
            .status();
        assert!(done.unwrap().success(), "{line}");
    };
    let image = image(folder.path());
    for put in [
        "ln -s precious disk.qcow2.bulkhead-journal",
        "ln -s nowhere disk.qcow2.bulkhead-journal",
        "ln precious disk.qcow2.bulkhead-journal",
        "mkfifo disk.qcow2.bulkhead-journal",
        "mkdir disk.qcow2.bulkhead-journal",
        "echo theirs > disk.qcow2.bulkhead-journal; chmod 666 disk.qcow2.bulkhead-journal",
    ] {
        shell(put);
        // It is served, with tables written first, and a kill loses nothing.
        let mut backend = Backend::start(&image, "qcow2", &[]);
        let mut guest = Guest::connect(&backend, 1);
        guest.write(0, &[7; 4096]);
        backend.kill();
        let reader = open(&image, false).unwrap();
        let mut data = [0; 4096];
        reader.read_at(0, &mut data).unwrap();
        assert_eq!(data, [7; 4096], "{put}");
        drop(reader);
        backend.restart_elsewhere(&image, "qcow2");
        guest.reconnect(&backend);
        drop(guest);
        assert!(backend.end().0.success(), "{put}");
        assert_eq!(std::fs::read(&target).unwrap(), b"precious", "{put}");
        assert!(!folder.path().join("nowhere").exists());
        shell("rm -r disk.qcow2.bulkhead-journal");
    }

    // Another file is in the place of a valid journal.
    let (_folder, image, ..) = killed();
    std::fs::rename(journal_of(&image), image.with_file_name("moved")).unwrap();
    std::os::unix::fs::symlink("moved", journal_of(&image)).unwrap();
    assert!(refused(&image).contains("symbolic link"));
}

#[test]
fn an_image_with_several_names_has_none_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(folder.path());
    std::fs::hard_link(&image, folder.path().join("second.qcow2")).unwrap();
    let mut backend = Backend::start(&image, "qcow2", &[]);
    assert!(!journal_of(&image).exists());
    let mut guest = Guest::connect(&backend, 1);
    guest.write(0, &[7; 4096]);
    backend.kill();
    let reader = open(&folder.path().join("second.qcow2"), false).unwrap();
    let mut data = [0; 4096];
    reader.read_at(0, &mut data).unwrap();
    assert_eq!(data, [7; 4096]);
}

#[test]
fn a_symbolic_link_to_the_image_leads_to_the_same_one() {
    let (folder, image, mut backend, mut guest) = killed();
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link.qcow2");
    std::os::unix::fs::symlink(&image, &link).unwrap();
    backend.restart_elsewhere(&link, "qcow2");
    guest.reconnect(&backend);
    assert_eq!(guest.read(256, 4096), [2; 4096]);
    drop(guest);
    assert!(backend.end().0.success());
    is_sound_and_closed(&image);
    drop(folder);
}

/// Resident memory of a process in bytes, at its highest.
fn peak_memory(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

/// As a former version of this program noted tables behind the records, where the frontend can write.
fn forged_tail(records: &[[u64; 4]]) -> Vec<u8> {
    const MAGIC: u64 = 0x626c_6b68_646a_7231;
    let mut words = vec![MAGIC, 0, 0, 0, records.len() as u64, 0, 0, 0];
    words.extend(records.iter().flatten());
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn hand_over(guest: &mut Guest, tail: &[u8]) {
    guest.negotiate();
    let wanted = VhostUserInflight::new(0, 0, 1, RING_SIZE);
    let (mut layout, own) = guest.frontend.get_inflight_fd(&wanted).unwrap();
    let records = own.metadata().unwrap().len() - 64;
    let area = tempfile::tempfile().unwrap();
    area.set_len(records + (256 << 10)).unwrap();
    area.write_all_at(&tail[..tail.len().min(256 << 10)], records)
        .unwrap();
    layout.mmap_size = records + (256 << 10);
    guest.inflight = Some((layout, area));
}

#[test]
fn nothing_behind_the_in_flight_records_harms_the_image_or_the_server() {
    const L1: u64 = 3 << 8;
    const L2: u64 = 2 << 8;
    let folder = tempfile::tempdir().unwrap();
    let image = image(folder.path());
    let mut random = vec![0; 256 << 10];
    File::open("/dev/urandom")
        .map(|mut file| std::io::Read::read_exact(&mut file, &mut random))
        .unwrap()
        .unwrap();
    let created: Vec<_> = (1..1500u64)
        .map(|at| [2 | L2, at << 21, 2 << 20, 0])
        .collect();
    let tails = [
        forged_tail(&[[3, 0, 1, 0]]),
        forged_tail(&[[1 | L1, 0x3_0000, 0, 0xffff_ffff]]),
        forged_tail(&created),
        random,
    ];
    let backend = Backend::start(&image, "qcow2", &["--persist"]);
    let mut guest = Guest::connect(&backend, 1);
    guest.write(0, &[7; 4096]);
    guest.flush();
    drop(guest);
    for (number, tail) in tails.iter().enumerate() {
        let mut guest = Guest::connect_only(&backend, 1);
        hand_over(&mut guest, tail);
        guest.start();
        assert_eq!(guest.read(0, 4096), [7; 4096], "{number}");
        guest.write(0, &[7; 4096]);
        guest.flush();
    }
    assert!(peak_memory(backend.child.id()) < 512 << 20);
    let pid = rustix::process::Pid::from_child(&backend.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let (status, said) = backend.end();
    assert!(status.success(), "{said}");
    is_sound_and_closed(&image);
    // And there was no warning about it.
    let _ = std::io::stderr().flush();
    assert_eq!(said, "");
}
