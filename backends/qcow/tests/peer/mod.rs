//! The peer of these tests: qemu-img and qemu-io, the real ones.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod around;
pub(crate) mod header;
pub mod medium;

use std::path::Path;
use std::process::{Command, Output};

/// Runs a tool and returns what it said.
pub(crate) fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"))
}

/// Runs a tool in a folder and returns what it said.
pub(crate) fn run_in(folder: &Path, program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"))
}

/// Runs a tool that must succeed; returns its standard output.
pub(crate) fn ok(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {args:?} failed: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

pub(crate) fn qemu_img(args: &[&str]) -> String {
    ok("qemu-img", args)
}

/// Runs qemu-io commands on a qcow2 image.
pub(crate) fn qemu_io(path: &Path, commands: &[String]) -> String {
    let mut args = vec![
        "-f".to_owned(),
        "qcow2".to_owned(),
        "-d".to_owned(),
        "unmap".to_owned(),
    ];
    for command in commands {
        args.extend(["-c".to_owned(), command.clone()]);
    }
    args.push(path.display().to_string());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let out = ok("qemu-io", &args);
    assert!(!out.contains("failed"), "{commands:?}: {out}");
    out
}

/// QEMU finds nothing wrong with the image.
pub(crate) fn check(path: &Path) {
    let output = run("qemu-img", &["check", "-f", "qcow2", text(path)]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What the disk holds according to QEMU.
pub(crate) fn contents(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("qemu-raw");
    qemu_img(&[
        "convert",
        "-f",
        "qcow2",
        "-O",
        "raw",
        text(path),
        text(&raw),
    ]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(&raw).unwrap();
    bytes
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A small random number generator, so that a seed is all it takes to repeat a test.
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}
