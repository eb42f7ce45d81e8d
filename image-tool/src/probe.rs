//! Guessing the format of a file that was named without one: qemu-img's habit, kept for images that are read.

use std::io;

/// Names of formats with the bytes they begin with, and at which offset.
const MAGICS: [(&str, usize, &[u8]); 14] = [
    ("qcow2", 0, b"QFI\xfb"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vhdx", 0, b"vhdxfile"),
    ("vpc", 0, b"conectix"),
    ("vdi", 0x40, &[0x7f, 0x10, 0xda, 0xbe]),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("qed", 0, b"QED\0"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("bochs", 0, b"Bochs Virtual HD Image"),
    ("cloop", 0, b"#!/bin/sh\n#V2.0 Format\n"),
    ("dmg", 0, b"encrcdsa"),
];

/// The name of the format that the bytes from `start` on speak of; `raw` when they speak of none.
pub(crate) fn format_of(
    read_at: impl Fn(u64, &mut [u8]) -> io::Result<usize>,
    start: u64,
) -> io::Result<&'static str> {
    let mut head = [0u8; 512];
    let mut filled = 0;
    while let Some(rest) = head.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match read_at(start.saturating_add(filled as u64), rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let head = head.get(..filled).unwrap_or_default();
    let found = MAGICS
        .iter()
        .find(|(_, at, magic)| head.get(*at..).is_some_and(|tail| tail.starts_with(magic)));
    Ok(match found {
        // The same magic, and another format.
        Some(("qcow2", ..)) if head.get(4..8) == Some(&[0, 0, 0, 1]) => "qcow",
        Some((name, ..)) => name,
        None => "raw",
    })
}
