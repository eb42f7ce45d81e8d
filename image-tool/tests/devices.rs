//! Block devices: their size is fixed, and they are written in place, against qemu-img.

#![allow(clippy::disallowed_macros, reason = "a test prints why it was skipped")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fs;
use std::path::Path;
use std::process::Command;

use pair::{Pair, must, reference_is_there};

/// A loop device over a file, until this is dropped.
struct Device(String);

impl Device {
    /// `None` where there are none to be had.
    fn over(file: &Path) -> Option<Self> {
        let arguments = ["--find", "--show"];
        let output = Command::new("losetup").args(arguments).arg(file).output();
        let output = output.ok().filter(|output| output.status.success());
        if output.is_none() {
            eprintln!("skipped: no loop devices here");
        }
        let name = String::from_utf8(output?.stdout).unwrap();
        Some(Self(name.trim().to_owned()))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn a_device_is_shown_filled_and_never_resized_alike() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[
        &["truncate", "-s", "16M", "medium"],
        &["qemu-img", "create", "-q", "-f", "qcow2", "image", "8M"],
        &["qemu-io", "-c", "write -P 3 1M 1M", "image"],
    ]);
    let Some(device) = Device::over(&pair.theirs().join("medium")) else {
        return;
    };
    let name = device.0.as_str();
    let part = format!("driver=raw,offset=4096,file.driver=host_device,file.filename={name}");
    for arguments in [
        ["info", name].as_slice(),
        &["info", "--output=json", name],
        &["info", "--image-opts", &part],
        &["create", "-f", "raw", name, "8M"],
        &["create", "-f", "raw", name, "32M"],
        &["resize", "-f", "raw", name, "+1M"],
        &["resize", "-f", "raw", "--shrink", name, "1M"],
        &["resize", "-f", "raw", name, "16M"],
        &["convert", "-O", "raw", "image", name],
        &["convert", "-n", "-O", "raw", "image", name],
        &["convert", "-O", "qcow2", "image", name],
        &["info", "--output=json", name],
        &["check", name],
        &["compare", "image", name],
        &["resize", name, "100M"],
        &[
            "dd",
            "-f",
            "raw",
            &format!("if={name}"),
            "of=copy",
            "bs=1M",
            "count=1",
        ],
        &["measure", "-f", "raw", "-O", "qcow2", name],
    ] {
        let (ours, theirs) = pair.read_both(arguments);
        assert_eq!(ours, theirs, "{arguments:?}");
    }
    must(
        "zero",
        &pair.theirs(),
        &[
            "dd",
            "if=/dev/urandom",
            &format!("of={name}"),
            "bs=1M",
            "count=16",
        ],
    );
    pair.same_reading(&["convert", "-O", "raw", "image", name]);
    let disk = fs::read(name).unwrap();
    assert!(disk[..1 << 20].iter().all(|byte| *byte == 0));
    assert!(disk[1 << 20..2 << 20].iter().all(|byte| *byte == 3));
}
