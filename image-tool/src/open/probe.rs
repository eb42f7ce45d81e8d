//! Probing the format of an image that was named without one, by QEMU's rules. Formats that are not supported are
//! recognized, too, so that they are not opened as raw.

use std::io;

use qcow::Content;

/// Bytes at the beginning of a file that are probed.
const HEAD: usize = 512;

/// A format, and whether the beginning of a file is of that format.
type Rule = (&'static str, fn(&[u8; HEAD]) -> bool);

/// Formats with a magic number.
const RULES: [Rule; 11] = [
    ("qcow2", |head| {
        head.starts_with(b"QFI\xfb") && be32(head, 4) >= 2
    }),
    ("qcow", |head| {
        head.starts_with(b"QFI\xfb") && be32(head, 4) == 1
    }),
    ("vmdk", is_vmdk),
    ("vhdx", |head| head.starts_with(b"vhdxfile")),
    ("vpc", |head| head.starts_with(b"conectix")),
    ("vdi", |head| has(head, 0x40, &[0x7f, 0x10, 0xda, 0xbe])),
    ("luks", |head| head.starts_with(b"LUKS\xba\xbe\0\x01")),
    ("qed", |head| head.starts_with(b"QED\0")),
    ("parallels", |head| {
        let magic = head.starts_with(b"WithoutFreeSpace") || head.starts_with(b"WithouFreSpacExt");
        magic && has(head, 16, &2u32.to_le_bytes())
    }),
    ("bochs", |head| {
        let version = [0x1_0000u32, 0x2_0000].map(u32::to_le_bytes);
        head.starts_with(b"Bochs Virtual HD Image\0")
            && has(head, 32, b"Redolog\0")
            && has(head, 48, b"Growing\0")
            && version.iter().any(|version| has(head, 64, version))
    }),
    ("cloop", |head| {
        head.starts_with(
            b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n",
        )
    }),
];

fn has(head: &[u8; HEAD], at: usize, bytes: &[u8]) -> bool {
    head.get(at..).is_some_and(|tail| tail.starts_with(bytes))
}

fn be32(head: &[u8; HEAD], at: usize) -> u32 {
    let bytes = head.get(at..).and_then(|tail| tail.first_chunk());
    bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// A VMDK extent, or a VMDK descriptor: comments and blank lines, then a version.
fn is_vmdk(head: &[u8; HEAD]) -> bool {
    if head.starts_with(b"KDMV") || head.starts_with(b"COWD") {
        return true;
    }
    let mut rest = &head[..];
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n');
        let (line, following) = match end {
            Some(end) => rest.split_at(end + 1),
            None => (rest, &[][..]),
        };
        let is_blank = || {
            let blanks = line.iter().take_while(|byte| **byte == b' ').count();
            let end = line.get(blanks..).unwrap_or_default();
            blanks > 0 && (end == b"\n" || end == b"\r\n")
        };
        match line {
            [b'#', ..] => {}
            _ if is_blank() => {}
            _ => {
                let version = line.strip_prefix(b"version=").unwrap_or_default();
                return matches!(version, [b'1'..=b'3', b'\n'] | [b'1'..=b'3', b'\r', b'\n']);
            }
        }
        rest = following;
        if rest.is_empty() {
            return false;
        }
    }
}

/// The format by the bytes from `start` on, or by the file's extension; `raw` if neither is known.
pub(crate) fn format_of(
    content: &Content<'_>,
    start: u64,
    path: Option<&str>,
) -> io::Result<&'static str> {
    // A shorter file is padded with zeroes.
    let mut head = [0u8; HEAD];
    let mut filled = 0;
    while let Some(rest) = head.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match content.read_at(start.saturating_add(filled as u64), rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if let Some((name, _)) = RULES.iter().find(|(_, is_one)| is_one(&head)) {
        return Ok(name);
    }
    let is_dmg = path.is_some_and(|path| path.len() > 4 && path.ends_with(".dmg"));
    Ok(match is_dmg && filled > 0 {
        true => "dmg",
        false => "raw",
    })
}
