//! What fails, is interrupted or killed half-way leaves nothing that passes for an image, and what was there before
//! stays as it was.

#![allow(clippy::disallowed_macros, reason = "a test prints why it was skipped")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use pair::images::{BASE, OVERLAY, RAW};
use pair::{Outcome, Pair, must, reference_is_there};

/// A raw image, and an overlay with a snapshot.
fn disks() -> Pair {
    let pair = Pair::new();
    pair.make(&[RAW, BASE, OVERLAY]);
    pair
}

fn names(folder: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

/// Whether files can be without a name there until they are finished.
fn has_nameless_files(folder: &Path) -> bool {
    let mut options = File::options();
    options.write(true).custom_flags(libc::O_TMPFILE);
    options.open(folder).is_ok()
}

fn start(folder: &Path, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_image-tool"))
        .args(args)
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Whether the process has the file open that it is to make: one of the folder that has no name, or a name for the
/// time being.
fn has_begun(child: &Child) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{}/fd", child.id())) else {
        return false;
    };
    open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|path| path.to_string_lossy().into_owned())
        .any(|path| path.ends_with(" (deleted)") || path.ends_with(".unfinished"))
}

/// Ends it by a signal as soon as it has begun.
fn interrupt(mut child: Child, signal: &str, has_begun: impl Fn(&Child) -> bool) -> ExitStatus {
    // One that fails by itself is as good.
    while !has_begun(&child) && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let pid = child.id().to_string();
    let kill = Command::new("kill")
        .args(["-s", signal, &pid])
        .stderr(Stdio::null())
        .status();
    kill.unwrap();
    child.wait().unwrap()
}

/// Runs image-tool with files limited to 32 KiB.
fn run_limited(folder: &Path, line: &str) -> Outcome {
    run_limited_to(folder, 64, line)
}

/// Runs image-tool with files limited to so many blocks of 512 bytes.
fn run_limited_to(folder: &Path, blocks: u64, line: &str) -> Outcome {
    Command::new("sh")
        .arg("-c")
        .arg(format!(
            "ulimit -f {blocks}; trap '' XFSZ; exec {} {line}",
            env!("CARGO_BIN_EXE_image-tool")
        ))
        .current_dir(folder)
        .output()
        .unwrap()
        .into()
}

#[test]
fn nothing_is_left_of_a_convert_that_fails() {
    if !reference_is_there() {
        return;
    }
    let pair = disks();
    let folder = pair.ours();
    let before = names(&folder);

    let failed = run_limited(&folder, "convert -O qcow2 overlay x");

    assert_eq!(failed.status, Some(1), "{failed:?}");
    let message = &failed.stderr;
    assert!(
        message.contains("image-tool: error while writing at byte")
            || message.contains("too large"),
        "{message}"
    );
    assert_eq!(names(&folder), before);
}

#[test]
fn nothing_is_left_of_what_is_interrupted_or_killed() {
    if !reference_is_there() {
        return;
    }
    let pair = disks();
    let folder = pair.ours();
    let before = names(&folder);
    let mut signals = vec!["INT", "TERM"];
    if has_nameless_files(&folder) {
        signals.push("KILL");
    }
    for signal in signals {
        for args in [
            &["convert", "-r", "1k", "-O", "raw", "overlay", "x"][..],
            &["convert", "-r", "1k", "-O", "qcow2", "overlay", "x"],
            &["create", "-o", "preallocation=full", "x", "4G"],
        ] {
            let status = interrupt(start(&folder, args), signal, has_begun);
            assert!(!status.success(), "{args:?} SIG{signal}: {status}");
            assert_eq!(names(&folder), before, "{args:?} SIG{signal}");
        }
    }
}

/// Where the first compressed cluster that the first L2 table has begins.
fn first_compressed(image: &[u8]) -> usize {
    let word = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let table = (word(word(40) as usize) & 0x00ff_ffff_ffff_fe00) as usize;
    let mut entries = (table..).step_by(8).map(word);
    // Clusters of 64 KiB: 54 bits of offset.
    (entries.find(|entry| entry >> 62 & 1 == 1).unwrap() & ((1 << 54) - 1)) as usize
}

#[test]
fn what_was_there_before_stays_as_it_was_until_the_new_is_whole() {
    if !reference_is_there() {
        return;
    }
    let pair = disks();
    let folder = pair.ours();
    // A source that cannot be read to its end: the first compressed cluster is damaged.
    let command = ["convert", "-c", "-O", "qcow2", "a.raw", "damaged"];
    assert_eq!(pair.run_ours(&command).status, Some(0));
    let mut bytes = fs::read(folder.join("damaged")).unwrap();
    let first = first_compressed(&bytes);
    bytes[first..first + 600].fill(0xff);
    fs::write(folder.join("damaged"), bytes).unwrap();
    let old = b"what was there before";
    for format in ["raw", "qcow2"] {
        for source in ["damaged", "overlay"] {
            for signal in ["INT", "TERM", "KILL"] {
                fs::write(folder.join("x"), old).unwrap();
                let args = ["convert", "-r", "1k", "-O", format, source, "x"];
                assert!(!interrupt(start(&folder, &args), signal, has_begun).success());
                let found = fs::read(folder.join("x")).unwrap();
                assert!(found == old, "{format} {source} SIG{signal}");
            }
            let failing = pair.run_ours(&["convert", "-O", format, "damaged", "x"]);
            assert_eq!(failing.status, Some(1), "{failing:?}");
            assert!(fs::read(folder.join("x")).unwrap() == old, "{format}");
        }
    }
}

#[test]
fn a_file_of_somebody_else_is_replaced_or_stays_too() {
    const SOMEBODY: u32 = 1234;
    if !reference_is_there() {
        return;
    }
    let pair = disks();
    let folder = pair.ours();
    let x = folder.join("x");
    fs::write(&x, "old").unwrap();
    if fs::metadata(&folder).unwrap().uid() != 0 {
        eprintln!("skipped: only root can give files away");
        return;
    }
    chown(&x, Some(SOMEBODY), None).unwrap();
    let before = names(&folder);

    let args = ["convert", "-r", "1k", "-O", "raw", "overlay", "x"];
    assert!(!interrupt(start(&folder, &args), "TERM", has_begun).success());
    assert_eq!(names(&folder), before);
    assert_eq!(fs::read(&x).unwrap(), b"old");

    let converted = pair.run_ours(&["convert", "-O", "raw", "overlay", "x"]);
    assert_eq!(converted.status, Some(0), "{converted:?}");
    assert_eq!(names(&folder), before);
    assert_eq!(fs::metadata(&x).unwrap().uid(), SOMEBODY);
    assert_eq!(fs::metadata(&x).unwrap().len(), 12 << 20);
}

/// Whether `info` shows that the image is corrupt.
fn is_marked(folder: &Path) -> bool {
    let info = must("info", folder, &["qemu-img", "info", "-U", "x"]);
    info.contains("corrupt: true")
}

#[test]
fn an_existing_image_is_marked_until_it_is_filled() {
    if !reference_is_there() {
        return;
    }
    let pair = disks();
    let folder = pair.ours();
    let new = || {
        let line = ["qemu-img", "create", "-q", "-f", "qcow2", "x", "12M"];
        must("create", &folder, &line);
    };

    new();
    let failed = run_limited(&folder, "convert -n -O qcow2 a.raw x");
    assert_eq!(failed.status, Some(1), "{failed:?}");
    assert!(
        failed.stderr.contains("error while writing at byte")
            && failed.stderr.contains("'x' is incomplete"),
        "{failed:?}"
    );
    assert!(is_marked(&folder), "after a failure");
    for signal in ["TERM", "KILL"] {
        new();
        let args = ["convert", "-r", "1k", "-n", "-O", "qcow2", "overlay", "x"];
        assert!(!interrupt(start(&folder, &args), signal, |_| is_marked(&folder)).success());
        assert!(is_marked(&folder), "after SIG{signal}");
    }
    let refused = Command::new("qemu-io")
        .args(["-c", "write 0 512", "x"])
        .current_dir(&folder)
        .output()
        .unwrap();
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.contains("Image is corrupt"), "{refused}");

    assert_eq!(pair.run_ours(&["check", "-r", "all", "x"]).status, Some(0));
    let line = ["convert", "-n", "-O", "qcow2", "overlay", "x"];
    assert_eq!(pair.run_ours(&line).status, Some(0));
    assert!(!is_marked(&folder), "although it is whole");
    let compared = pair.run_ours(&["compare", "overlay", "x"]);
    assert_eq!(compared.status, Some(0), "{compared:?}");
}

#[test]
fn what_cannot_be_marked_is_filled_all_the_same() {
    if !reference_is_there() {
        return;
    }
    let pair = disks();
    for line in [
        "create -q -f qcow2 -o compat=0.10 x 12M",
        "convert -n -O qcow2 overlay x",
        "compare overlay x",
        "create -q -f raw y 12M",
        "convert -n -O raw overlay y",
        "compare overlay y",
    ] {
        let args: Vec<_> = line.split(' ').collect();
        let outcome = pair.run_ours(&args);
        assert_eq!(outcome.status, Some(0), "{line}: {outcome:?}");
    }
}

#[test]
fn a_resize_for_which_there_is_no_space_leaves_the_disk_as_it_was() {
    if !reference_is_there() {
        return;
    }
    let pair = disks();
    let folder = pair.ours();
    for (image, line) in [
        ("overlay", "resize --preallocation=full overlay +4M"),
        ("overlay", "resize --preallocation=falloc overlay +4M"),
        ("base", "resize --preallocation=full base +4M"),
        ("base", "resize --preallocation=falloc base +4M"),
        ("base", "resize --preallocation=metadata base +4M"),
        ("a.raw", "resize -f raw --preallocation=full a.raw +4M"),
    ] {
        let facts = || {
            must(
                "info",
                &folder,
                &["qemu-img", "info", "--output=json", image],
            )
        };
        let size = |facts: &str| {
            let line = facts.lines().rfind(|line| line.contains("virtual-size"));
            line.unwrap().to_owned()
        };
        must("copy", &folder, &["cp", image, "before"]);
        // Room for tables, not for the data.
        let blocks = fs::metadata(folder.join(image)).unwrap().len() / 512 + 512;
        let before = facts();

        let failed = run_limited_to(&folder, blocks, line);

        assert_eq!(failed.status, Some(1), "{line}: {failed:?}");
        assert_eq!(size(&facts()), size(&before), "{line}");
        if image != "a.raw" {
            must(line, &folder, &["qemu-img", "check", image]);
        }
        must(
            line,
            &folder,
            &["qemu-img", "compare", "-s", image, "before"],
        );
    }
}
