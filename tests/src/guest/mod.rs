//! The bare-metal guest of `tests/guest`, run by the real programs on this machine's KVM.
//!
//! A test starts backends ([`Backend`]) and a monitor ([`Machine`]) as processes, gives the guest its task by the
//! command line, and compares what it says on the serial port, and what is then in the image or arrived at the tap,
//! with what the test knows to be right.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod api;
mod backend;
mod image;
mod machine;
mod namespace;
#[path = "../../guest/src/pattern.rs"]
mod pattern;
mod program;

pub use api::{exit_count, put};
pub use backend::Backend;
pub use image::{Format, Image, crc32};
pub use machine::{Line, Machine, disk, is_installed, kvm_is_usable, net};
pub use namespace::{Answers, RUN, in_own_host, in_own_namespace, ip, processes, serve_inverted};
pub use program::Program;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::workplace::Workplace;

/// Length of a sector.
pub const SECTOR: u64 = 512;

/// Set to the guest's path by a test that has started itself again.
const GUEST: &str = "BULKHEAD_TEST_INSIDE_WITH_GUEST";

/// The guest's ELF file, built by cargo at the first call.
///
/// # Panics
/// When it cannot be built.
pub fn kernel() -> &'static Path {
    static KERNEL: OnceLock<PathBuf> = OnceLock::new();
    KERNEL.get_or_init(|| {
        if let Some(built) = std::env::var_os(GUEST) {
            return built.into();
        }
        let target = Workplace::find().unwrap().target.join("guest");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--quiet", "--release", "--locked"])
            .arg("--manifest-path")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            // Variables that cargo sets for this test's build are not for another build.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .status()
            .expect("start cargo");
        assert!(status.success(), "the guest cannot be built");
        target.join("release/bulkhead-guest")
    })
}

/// The bytes from `offset` (a multiple of 8) on of the endless pattern of `seed`, as the guest computes them.
#[must_use]
pub fn pattern(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pattern::fill(seed, offset, &mut bytes);
    bytes
}

/// The payload of the guest's datagram number `index`.
#[must_use]
pub fn datagram(seed: u64, index: u64) -> Vec<u8> {
    const SMALLEST: u64 = 8;
    const LARGEST: u64 = 1472;
    let size = SMALLEST + index * 37 % (LARGEST - SMALLEST + 1);
    let mut payload = pattern(seed + index, 0, size as usize);
    payload[..8].copy_from_slice(&index.to_le_bytes());
    payload
}
