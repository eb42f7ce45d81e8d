//! Images and journals that are renamed, moved, linked, mounted, copied and removed while an image is served or after a
//! kill: whoever opens the image next finds all that was written, or gets an error.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]
// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use peer::killed::{
    SIZE, go_on_without, has_all, image, is_refused, is_sound_and_closed, journal_of, killed, open,
    refused, refused_within, served, served_from,
};
use peer::{Backend, Guest};
use qcow::{CreateOptions, Format};

/// A reader finds all, and so does the next backend, which then keeps a journal of that name and leaves nothing behind.
fn all_is_found(image: &Path, backend: &mut Backend, guest: &mut Guest) {
    assert!(has_all(&open(image, false).unwrap()));
    backend.restart_elsewhere(image, "qcow2");
    guest.reconnect(backend);
    for block in 0..20u64 {
        assert_eq!(guest.read(block * 256, 4096), [1 + block as u8; 4096]);
    }
    guest.write(0, &[1; 4096]);
}

fn ends(image: &Path, backend: Backend, guest: Guest) {
    drop(guest);
    let (status, said) = backend.end();
    assert!(status.success(), "{said}");
    is_sound_and_closed(image);
    let folder = std::fs::read_dir(image.parent().unwrap()).unwrap();
    let names: Vec<_> = folder.map(|entry| entry.unwrap().file_name()).collect();
    let is_journal = |name: &&std::ffi::OsString| name.to_string_lossy().contains("journal");
    assert_eq!(names.iter().find(is_journal), None);
}

#[test]
fn an_image_that_is_renamed_while_it_is_served_or_after_a_kill_has_all() {
    for is_served in [true, false] {
        let (_folder, old, mut backend, mut guest) = served();
        let new = old.with_file_name("new.qcow2");
        if is_served {
            std::fs::rename(&old, &new).unwrap();
            guest.write(0, &[1; 4096]);
            backend.kill();
        } else {
            backend.kill();
            std::fs::rename(&old, &new).unwrap();
        }
        all_is_found(&new, &mut backend, &mut guest);
        assert!(journal_of(&new).exists() && !journal_of(&old).exists());
        ends(&new, backend, guest);
    }
}

#[test]
fn an_image_that_is_renamed_while_it_is_served_leaves_nothing_at_an_orderly_end() {
    let (_folder, old, backend, guest) = served();
    let new = old.with_file_name("new.qcow2");
    std::fs::rename(&old, &new).unwrap();
    drop(guest);
    assert!(backend.end().0.success());
    assert!(has_all(&open(&new, false).unwrap()));
    is_sound_and_closed(&new);
    assert!(!journal_of(&old).exists());
}

#[test]
fn an_image_that_is_linked_while_it_is_served_has_all_by_either_name() {
    for by_new in [true, false] {
        let (_folder, old, mut backend, mut guest) = served();
        let new = old.with_file_name("new.qcow2");
        std::fs::hard_link(&old, &new).unwrap();
        backend.kill();
        let name = if by_new { &new } else { &old };
        all_is_found(name, &mut backend, &mut guest);
        // Tables are written first now.
        assert!(!journal_of(name).exists());
        ends(name, backend, guest);
    }
}

#[test]
fn an_image_has_all_by_whatever_name_leads_to_its_folder() {
    let (folder, image, mut backend, mut guest) = killed();
    let path = folder.path();
    std::fs::create_dir(path.join("inner")).unwrap();
    std::os::unix::fs::symlink(path, path.join("inner/link")).unwrap();
    std::os::unix::fs::symlink("../disk.qcow2", path.join("inner/image")).unwrap();
    for name in [
        "inner/../disk.qcow2",
        "inner/link/disk.qcow2",
        "inner/link/inner/../inner/image",
    ] {
        all_is_found(&path.join(name), &mut backend, &mut guest);
        backend.kill();
    }
    all_is_found(&image, &mut backend, &mut guest);
    ends(&image, backend, guest);
}

#[test]
fn an_image_that_is_moved_without_its_journal_is_an_error_that_names_it() {
    let by_link = |old: &Path, new: &Path| std::fs::hard_link(old, new).unwrap();
    let by_rename = |old: &Path, new: &Path| std::fs::rename(old, new).unwrap();
    for moved in [&by_link as &dyn Fn(&Path, &Path), &by_rename] {
        let (folder, old, mut backend, mut guest) = served();
        let elsewhere = folder.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        let new = elsewhere.join("new.qcow2");
        moved(&old, &new);
        backend.kill();
        let journal = journal_of(&old.canonicalize().unwrap_or(old.clone()));
        is_refused(&new, &[journal.to_str().unwrap(), "not in the folder"]);
        // The journal is found there, whatever its name is.
        let name = elsewhere.join("any.bulkhead-journal");
        std::fs::rename(&journal, name).unwrap();
        all_is_found(&new, &mut backend, &mut guest);
        ends(&new, backend, guest);
    }
}

#[test]
fn a_journal_that_is_removed_is_an_error_until_a_repair_goes_on_without() {
    let (_folder, image, mut backend, mut guest) = killed();
    std::fs::remove_file(journal_of(&image)).unwrap();
    is_refused(
        &image,
        &["disk.qcow2.bulkhead-journal", "not in the folder"],
    );
    go_on_without(&image);
    backend.restart_elsewhere(&image, "qcow2");
    guest.reconnect(&backend);
    ends(&image, backend, guest);
}

#[test]
fn a_journal_that_is_renamed_is_found_by_its_suffix() {
    let (_folder, image, mut backend, mut guest) = killed();
    let journal = journal_of(&image);
    std::fs::rename(&journal, image.with_file_name("old")).unwrap();
    is_refused(&image, &["disk.qcow2.bulkhead-journal"]);
    let name = image.with_file_name("x.bulkhead-journal");
    std::fs::rename(image.with_file_name("old"), name).unwrap();
    all_is_found(&image, &mut backend, &mut guest);
    ends(&image, backend, guest);
}

#[test]
fn a_renamed_journal_that_nobody_waits_for_goes_when_the_image_is_served_again() {
    let (_folder, image, mut backend, mut guest) = killed();
    let name = image.with_file_name("x.bulkhead-journal");
    std::fs::rename(journal_of(&image), &name).unwrap();
    // The journal of another image, which nobody serves.
    let (_other_folder, other, ..) = killed();
    let theirs = image.with_file_name("theirs.bulkhead-journal");
    std::fs::copy(journal_of(&other), &theirs).unwrap();
    // The image as a program leaves it that knows no journals.
    let written = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 1 0 4k"])
        .arg(&image)
        .output()
        .unwrap();
    assert!(written.status.success(), "{written:?}");
    assert!(name.exists());
    backend.restart_elsewhere(&image, "qcow2");
    guest.reconnect(&backend);
    assert_eq!(guest.read(0, 4096), [1; 4096]);
    assert!(!name.exists() && theirs.exists());
    std::fs::remove_file(theirs).unwrap();
    ends(&image, backend, guest);
}

#[test]
fn another_image_of_the_old_name_leaves_the_journal_alone_and_has_one_of_a_second_name() {
    let (_folder, old, mut backend, mut guest) = killed();
    let new = old.with_file_name("new.qcow2");
    std::fs::rename(&old, &new).unwrap();
    let inode = std::fs::metadata(image(old.parent().unwrap()))
        .unwrap()
        .ino();
    let second = old.with_file_name(format!("disk.qcow2.{inode}.bulkhead-journal"));
    for killed in [true, false] {
        let mut other = Backend::start(&old, "qcow2", &[]);
        assert!(second.exists());
        let mut theirs = Guest::connect(&other, 1);
        theirs.write(0, &[9; 4096]);
        if killed {
            other.kill();
        } else {
            drop(theirs);
            assert!(other.end().0.success());
        }
        assert_eq!(second.exists(), killed);
        let mut data = [0; 4096];
        open(&old, false).unwrap().read_at(0, &mut data).unwrap();
        assert_eq!(data, [9; 4096]);
    }
    all_is_found(&new, &mut backend, &mut guest);
    ends(&new, backend, guest);
}

#[test]
fn a_base_image_that_waits_for_its_journal_is_an_error_of_its_overlay() {
    let (_folder, base, ..) = killed();
    std::fs::remove_file(journal_of(&base)).unwrap();
    let overlay = base.with_file_name("overlay.qcow2");
    let mut options = CreateOptions::new(Format::Qcow2, SIZE);
    options.backing_file = Some("disk.qcow2".into());
    options.backing_format = Some(Format::Qcow2);
    qcow::create(&overlay, &options).unwrap();
    let said = refused(&overlay);
    assert!(said.contains("disk.qcow2.bulkhead-journal"), "{said}");
}

/// The program in a mount namespace of its own, in which these are bound.
fn bound(from: &Path, to: &Path) -> Command {
    let mut command = Command::new("unshare");
    let line = "mount --bind \"$1\" \"$2\" && program=$3 && shift 3 && exec \"$program\" \"$@\"";
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command
        .args(["--mount", "sh", "-ec", line, "sh"])
        .arg(from)
        .arg(to)
        .arg(env!("CARGO_BIN_EXE_bulkhead-block"));
    command
}

fn place(folder: &Path, name: &str, is_folder: bool) -> PathBuf {
    let place = folder.join(name);
    match is_folder {
        true => std::fs::create_dir(&place).unwrap(),
        false => std::fs::write(&place, b"").unwrap(),
    }
    place
}

#[test]
fn an_image_that_is_mounted_elsewhere_without_its_folder_is_an_error_that_names_the_journal() {
    let (folder, image, ..) = killed();
    let elsewhere = place(folder.path(), "elsewhere", true);
    let mounted = place(&elsewhere, "mounted.qcow2", false);
    let said = refused_within(bound(&image, &mounted), &mounted);
    let journal = journal_of(&image.canonicalize().unwrap());
    assert!(said.contains(journal.to_str().unwrap()), "{said}");
    // With its folder it is whole: it can be opened, and then it is the socket's folder that is not there.
    let mounted = place(folder.path(), "folder", true);
    let mut command = bound(folder.path(), &mounted);
    command
        .args(["--socket-path", "/nowhere/blk.sock", "--format", "qcow2"])
        .arg("--blk-file")
        .arg(mounted.join("disk.qcow2"));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("/nowhere"), "{said}");
}

/// `O_EXCL`: of a block device, as long as nothing is mounted from it.
const EXCLUSIVE: i32 = 0o200;

/// A loop device of a file with a file system.
struct Device(String);

impl Device {
    /// `None` where there are none.
    fn new(folder: &Path) -> Option<Self> {
        let line = "test -e medium || { truncate -s 64M medium && mkfs.ext4 -q medium; } && \
                    losetup --find --show medium";
        let made = Command::new("sh")
            .args(["-c", line])
            .current_dir(folder)
            .output()
            .unwrap();
        if !made.status.success() {
            eprintln!("skipped: no loop devices here: {made:?}");
            return None;
        }
        let device = String::from_utf8(made.stdout).unwrap();
        Some(Self(device.trim().to_owned()))
    }

    /// Unmounts it, also where a process that was killed had its own view of it, which may end later.
    fn unmount(&self, at: &Path) {
        let end = Instant::now() + Duration::from_secs(60);
        let is_free = || {
            let _ = Command::new("umount")
                .arg(at)
                .stderr(Stdio::null())
                .status();
            let mut options = std::fs::File::options();
            options.read(true).custom_flags(EXCLUSIVE);
            options.open(&self.0).is_ok()
        };
        while !is_free() {
            assert!(Instant::now() < end, "{} is in use", self.0);
            std::thread::yield_now();
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

fn mount(device: &Device, at: &Path) {
    let mounted = Command::new("mount").arg(&device.0).arg(at).status();
    assert!(mounted.unwrap().success());
}

#[test]
fn an_image_is_the_same_on_another_device_number_and_a_copy_of_the_same_inode_number_is_not() {
    const NAME: &str =
        "an_image_is_the_same_on_another_device_number_and_a_copy_of_the_same_inode_number_is_not";
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root mounts file systems");
        return;
    }
    if std::env::var_os("BULKHEAD_TEST_MOUNTS").is_none() {
        // The mounts go with the namespace.
        let output = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env("BULKHEAD_TEST_MOUNTS", "own")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let Some(first) = Device::new(outside.path()) else {
        return;
    };
    let at = place(outside.path(), "at", true);
    mount(&first, &at);
    let (folder, image, mut backend, mut guest) = served_from(tempfile::tempdir_in(&at).unwrap());
    backend.kill();
    let before = std::fs::metadata(&image).unwrap();
    first.unmount(&at);
    let second = Device::new(outside.path()).unwrap();
    mount(&second, &at);
    assert_ne!(std::fs::metadata(&image).unwrap().dev(), before.dev());
    all_is_found(&image, &mut backend, &mut guest);

    let copy = image.with_file_name("copy");
    std::fs::copy(&image, &copy).unwrap();
    backend.kill();
    // Nobody has it open any more, so that its number is free.
    second.unmount(&at);
    mount(&second, &at);
    std::fs::remove_file(&image).unwrap();
    std::fs::copy(&copy, &image).unwrap();
    assert_eq!(std::fs::metadata(&image).unwrap().ino(), before.ino());
    is_refused(&image, &["a copy of an image in use"]);
    drop((guest, backend, folder));
    second.unmount(&at);
}
