//! Formats that are guessed: what qemu-img takes for one that is not known here is never taken for a raw disk, and what
//! it takes for a raw disk is one.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fs;

use pair::{Pair, reference_is_there};

/// 64 KiB with these bytes at an offset.
fn with(parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 65536];
    for (at, part) in parts {
        bytes[*at..at + part.len()].copy_from_slice(part);
    }
    bytes
}

fn bochs(version: u32) -> Vec<u8> {
    with(&[
        (0, b"Bochs Virtual HD Image"),
        (32, b"Redolog"),
        (48, b"Growing"),
        (64, &version.to_le_bytes()),
    ])
}

/// Names and contents.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    const CLOOP: &[u8] =
        b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n";
    let start = |bytes: &[u8]| with(&[(0, bytes)]);
    let parallels = |magic: &[u8], version: u32| with(&[(0, magic), (16, &version.to_le_bytes())]);
    vec![
        ("x.dmg", with(&[])),
        ("koly.dmg", with(&[(65024, b"koly")])),
        ("vdi.dmg", with(&[(0x40, &[0x7f, 0x10, 0xda, 0xbe])])),
        ("empty.dmg", Vec::new()),
        ("x.DMG", with(&[])),
        ("x.dmg.raw", with(&[])),
        (".dmg", with(&[])),
        ("dmg", with(&[])),
        ("koly", with(&[(65024, b"koly")])),
        ("encrypted", start(b"encrcdsa")),
        ("vdi", with(&[(0x40, &[0x7f, 0x10, 0xda, 0xbe])])),
        (
            "vdi-text",
            start(b"<<< Oracle VM VirtualBox Disk Image >>>\n"),
        ),
        ("vmdk4", start(b"KDMV\x01\0\0\0")),
        ("vmdk3", start(b"COWD\x01\0\0\0")),
        ("vmdk1", start(b"# Disk DescriptorFile\nversion=1\n")),
        ("vmdk2", start(b"# a\n  \n \r\n#b\nversion=2\r\n")),
        ("vmdk-plain", b"version=3\n".to_vec()),
        ("vmdk-other", start(b"# Disk DescriptorFile\nversion=4\n")),
        (
            "vmdk-later",
            start(b"# Disk DescriptorFile\nCID=1\nversion=1\n"),
        ),
        ("vmdk-never", start(b"# Disk DescriptorFile\n")),
        ("vmdk-blank", start(b"#a\n\nversion=1\n")),
        ("vmdk-long", start(&[b'#'; 600])),
        ("vhdx", start(b"vhdxfile")),
        ("vpc", start(b"conectix")),
        ("vpc-fixed", with(&[(65024, b"conectix")])),
        ("luks1", start(b"LUKS\xba\xbe\0\x01")),
        ("luks2", start(b"LUKS\xba\xbe\0\x02")),
        ("qed", start(b"QED\0")),
        ("qed-short", b"QED".to_vec()),
        ("parallels", parallels(b"WithoutFreeSpace", 2)),
        ("parallels-ext", parallels(b"WithouFreSpacExt", 2)),
        ("parallels3", parallels(b"WithoutFreeSpace", 3)),
        ("bochs1", bochs(0x10000)),
        ("bochs2", bochs(0x20000)),
        ("bochs3", bochs(0x30000)),
        ("bochs-name", start(b"Bochs Virtual HD Image")),
        ("cloop", start(CLOOP)),
        ("cloop-begun", start(b"#!/bin/sh\n#V2.0 Format\n")),
        ("qcow", start(b"QFI\xfb\0\0\0\x01")),
        ("qcow0", start(b"QFI\xfb\0\0\0\0")),
        ("qcow9", start(b"QFI\xfb\0\0\0\x09")),
        ("qcow-short", b"QFI\xfb".to_vec()),
        ("iso", with(&[(32768, b"\x01CD001")])),
        ("nothing", Vec::new()),
    ]
}

#[test]
fn what_qemu_img_takes_for_another_format_is_not_taken_for_a_raw_disk() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    for (name, content) in files() {
        fs::write(pair.theirs().join(name), content).unwrap();
        for verb in [&["info"][..], &["map"], &["measure", "-O", "raw"]] {
            let (ours, theirs) = pair.read_both(&[verb, &[name]].concat());
            // None of the others is whole, so it fails there, too.
            assert_eq!(ours.status, theirs.status, "{name}: {ours:?} {theirs:?}");
            if name.starts_with("qcow9") || theirs.status == Some(0) {
                assert_eq!(ours, theirs, "{name}");
                continue;
            }
            let words = "' is not supported";
            assert!(ours.stderr.contains(words), "{name}: {ours:?}");
        }
        // Who says that it is a raw disk is believed.
        pair.same_reading(&["map", "-f", "raw", name]);
    }
}

#[test]
fn the_name_of_a_file_counts_wherever_it_stands() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&["truncate -s 1M x.dmg", "truncate -s 1M plain"]);
    for line in [
        "info --image-opts file.filename=x.dmg",
        "info file:x.dmg",
        "info ./x.dmg",
        r#"info json:{"file":{"filename":"x.dmg"}}"#,
        "compare x.dmg plain",
        "convert x.dmg out",
        "dd if=x.dmg of=out",
        "resize x.dmg 2M",
        "create -f qcow2 -b x.dmg -F raw out",
        "convert -O raw plain y.dmg",
    ] {
        let (ours, theirs) = pair.run_both(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(ours.status, theirs.status, "{line}: {ours:?} {theirs:?}");
    }
}
