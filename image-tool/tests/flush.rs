//! An fdatasync that fails, once, at any point: the verb fails, whatever came after. Failures are made by strace, in
//! the system call.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::path::Path;
use std::process::Command;

const TOOL: &str = env!("CARGO_BIN_EXE_image-tool");

fn run(folder: &Path, line: &str) -> std::process::Output {
    let output = Command::new(TOOL)
        .args(line.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    output
}

/// Runs the verb with the `number`th sync of each thread failing; `None` if there was no such sync.
fn status_of(folder: &Path, line: &str, number: usize) -> Option<Option<i32>> {
    let log = folder.join("log");
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o", "log", "-e", "trace=fdatasync,fsync"])
        .arg("-e")
        .arg(format!("inject=fdatasync,fsync:error=EIO:when={number}"))
        .arg(TOOL)
        .args(line.split_whitespace())
        .current_dir(folder)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    let said = std::fs::read_to_string(log).unwrap();
    said.contains("INJECTED").then(|| status.code())
}

#[test]
fn the_exit_status_is_1_whichever_sync_failed() {
    for line in [
        "create -f qcow2 new.qcow2 1M",
        "convert -O qcow2 disk.qcow2 copy.qcow2",
        "convert -c -O qcow2 disk.qcow2 copy.qcow2",
        "dd -f qcow2 -O qcow2 if=disk.qcow2 of=copy.qcow2 bs=64k count=4",
        "resize disk.qcow2 4M",
        "resize --shrink disk.qcow2 512k",
        "commit overlay.qcow2",
        "commit -b base.raw rawlay.qcow2",
        "rebase -b other.qcow2 -F qcow2 overlay.qcow2",
        "rebase -u -b other.qcow2 -F qcow2 overlay.qcow2",
        "snapshot -c s2 disk.qcow2",
        "snapshot -a s1 disk.qcow2",
        "snapshot -d s1 disk.qcow2",
        "bitmap --add disk.qcow2 b",
        "amend -o lazy_refcounts=on disk.qcow2",
        "check -r all disk.qcow2",
    ] {
        let mut failed = 0;
        for number in 1..12 {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path();
            std::fs::write(folder.join("base.raw"), vec![1; 1 << 20]).unwrap();
            run(folder, "create -f qcow2 -b base.raw -F raw rawlay.qcow2");
            run(folder, "convert -O qcow2 base.raw disk.qcow2");
            run(folder, "convert -O qcow2 base.raw other.qcow2");
            run(folder, "snapshot -c s1 disk.qcow2");
            run(
                folder,
                "create -f qcow2 -b disk.qcow2 -F qcow2 overlay.qcow2",
            );
            for overlay in ["rawlay", "overlay"] {
                let options = qcow::OpenOptions::new(qcow::Format::Qcow2).writable(true);
                let path = folder.join(format!("{overlay}.qcow2"));
                let image = qcow::Image::open(path, &options.follow_references()).unwrap();
                image.write_at(0, &[2; 70_000]).unwrap();
                image.close().unwrap();
            }
            let Some(status) = status_of(folder, line, number) else {
                break;
            };
            failed += 1;
            assert_eq!(status, Some(1), "{line}: sync {number} failed");
        }
        assert!(
            failed > 0 || line.starts_with("check"),
            "{line} syncs nothing"
        );
    }
}
