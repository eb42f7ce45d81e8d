//! A file that somebody else makes shorter while a verb writes to it: the verb fails, though its writes make the file
//! longer again.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot be set up has failed"
)]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const TOOL: &str = env!("CARGO_BIN_EXE_image-tool");
/// Longer than any of it takes.
const PATIENCE: Duration = Duration::from_secs(120);
const SIZE: u64 = 16 << 20;

fn tool(folder: &Path, line: &str) -> Command {
    let mut tool = Command::new(TOOL);
    tool.args(line.split_whitespace()).current_dir(folder);
    tool
}

/// Waits until it is so, or `child` has ended.
fn wait(child: &mut Child, what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() && child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{what}: it goes on");
        }
        std::thread::yield_now();
    }
}

#[test]
fn what_a_verb_wrote_and_somebody_else_cut_off_is_an_error() {
    for (verb, file) in [
        (
            "bench -w -f raw -c 100000000 -s 4k --flush-interval 256 target",
            "target",
        ),
        (
            "bench -w -f qcow2 -c 100000000 -s 4k --flush-interval 256 image",
            "image",
        ),
        ("convert -n -r 4M -f raw -O raw source target", "target"),
        (
            "convert -n -t unsafe -r 4M -f raw -O raw source target",
            "target",
        ),
        ("convert -n -r 4M -f raw -O qcow2 source image", "image"),
        ("commit -r 4M overlay", "target"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join("source"), vec![7; SIZE as usize]).unwrap();
        let target = File::create(folder.join("target")).unwrap();
        target.set_len(SIZE).unwrap();
        for line in [
            "create -q -f qcow2 image 16M",
            "create -q -f qcow2 -b target -F raw overlay",
            "convert -n -f raw -O qcow2 source overlay",
        ] {
            assert!(tool(folder, line).status().unwrap().success(), "{line}");
        }
        let file = File::options().write(true).open(folder.join(file)).unwrap();
        let before = file.metadata().unwrap().blocks();
        let mut child = tool(folder, verb)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // At first it prepares.
        let has_begun = || file.metadata().unwrap().blocks() > before + (1 << 20) / 512;
        wait(&mut child, verb, has_begun);
        file.set_len(300 << 10).unwrap();
        wait(&mut child, verb, || false);
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{verb}: {said}");
        assert!(said.contains("made the file shorter"), "{verb}: {said}");
    }
}
