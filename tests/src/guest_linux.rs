//! The Linux guest of the demo and the end-to-end tests: Debian's kernel, busybox, and a script as its first process.

/// The modules of the kernel package that a guest needs for its devices.
pub const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "virtio_net"];
