//! Headers that do not fit into one sector are exchanged as safely as those that do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod peer;

use peer::header::{add_unknown, filling, unknown};
use peer::medium::{Event, Medium, SECTOR};
use peer::{check, contents, qemu_img, text};
use qcow::{CompressionType, CreateOptions, Format, Image, OpenOptions};

fn open(medium: &Medium, writable: bool) -> Image {
    let options = OpenOptions::new(Format::Qcow2).writable(writable);
    Image::open_storage(Box::new(medium.clone()), "image", &options).unwrap()
}

/// An overlay with an extension that nobody knows, of so many bytes, in front of the name of its backing file.
fn overlay(cluster_size: u64, extension: usize, name: &str) -> Medium {
    let medium = Medium::default();
    let options = CreateOptions {
        cluster_size,
        backing_file: Some(name.to_owned()),
        backing_format: Some(Format::Raw),
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    };
    qcow::create_in(&medium, &options).unwrap();
    add_unknown(&mut medium.state().bytes, extension);
    medium
}

/// The extension that nobody knows, as it is in the file.
fn unknown_extension(medium: &Medium) -> Vec<u8> {
    unknown(&medium.state().bytes).expect("the extension is gone")
}

fn name(medium: &Medium) -> String {
    open(medium, false)
        .info()
        .unwrap()
        .backing_filename
        .unwrap()
}

/// Everything that may be on the medium at some instant of `change`: all before a sync, and any of the sectors of the
/// header written since.
fn at_any_instant(medium: &Medium, change: impl FnOnce()) -> Vec<Medium> {
    let mut base = medium.state().bytes.clone();
    let from = medium.state().log.len();
    change();
    let mut media = Vec::new();
    let log = medium.state().log[from..].to_vec();
    for part in log.split_inclusive(|event| matches!(event, Event::Sync)) {
        let (mut sectors, mut others): (Vec<(usize, Vec<u8>)>, Vec<_>) = Default::default();
        for event in part {
            if let Event::Write { offset, bytes } = event {
                let mut at = 0;
                while at < bytes.len() {
                    let end = (at + SECTOR - (offset + at) % SECTOR).min(bytes.len());
                    let sector = (offset + at, bytes[at..end].to_vec());
                    match offset + at < 4096 {
                        true => sectors.push(sector),
                        false => others.push(sector),
                    }
                    at = end;
                }
            }
        }
        assert!(sectors.len() < 12, "{} sectors at a time", sectors.len());
        for subset in 0..1u32 << sectors.len() {
            let mut bytes = base.clone();
            let chosen = (sectors.iter().enumerate()).filter(|(bit, _)| subset >> bit & 1 == 1);
            for (_, (at, data)) in chosen {
                bytes.resize(bytes.len().max(at + data.len()), 0);
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
            media.push(Medium::with(bytes));
        }
        for (at, data) in sectors.into_iter().chain(others) {
            base.resize(base.len().max(at + data.len()), 0);
            base[at..at + data.len()].copy_from_slice(&data);
        }
    }
    media
}

#[test]
fn a_header_of_several_sectors_is_the_old_or_the_new_one() {
    let long = |letter: &str, len: usize| letter.repeat(len);
    for (extension, old, new) in [
        (0, long("a", 20), long("b", 1023)),
        (0, long("a", 1023), long("b", 1000)),
        (600, long("a", 20), long("b", 20)),
        (600, long("a", 20), long("b", 900)),
        (1500, long("a", 200), long("b", 201)),
        (300, long("a", 300), long("b", 10)),
    ] {
        let medium = overlay(4096, extension, &old);
        let image = open(&medium, true);

        let media = at_any_instant(&medium, || {
            image
                .change_backing_file(Some(&new), Some(Format::Raw))
                .unwrap();
        });

        assert_eq!(name(&medium), new);
        for medium in media {
            let found = name(&medium);
            assert!(found == old || found == new, "{extension}: {found}");
            assert_eq!(unknown_extension(&medium), filling(extension));
        }
    }
}

#[test]
fn extensions_that_move_are_whole_at_any_instant() {
    for (extension, name_len) in [(330, 20), (340, 600), (380, 20), (600, 20), (1200, 500)] {
        let old = "a".repeat(name_len);
        let medium = overlay(4096, extension, &old);
        let image = open(&medium, true);

        let media = at_any_instant(&medium, || {
            image.bitmap_add("b", None, false).unwrap();
            image.bitmap_remove("b").unwrap();
        });

        for medium in media {
            assert_eq!(name(&medium), old);
            assert_eq!(unknown_extension(&medium), filling(extension));
            assert!(
                open(&medium, false)
                    .info()
                    .unwrap()
                    .qcow2
                    .unwrap()
                    .bitmaps
                    .len()
                    <= 1
            );
        }
    }
}

#[test]
fn a_header_change_that_fits_only_by_moving_things_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    for (size, longest) in [(512, 290), (1024, 760), (2048, 1023)] {
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-u",
            "-b",
            &"x".repeat(30),
            "-F",
            "raw",
            "-o",
            &format!("cluster_size={size}"),
            text(&path),
            "1M",
        ]);
        let image = Image::open(&path, &OpenOptions::new(Format::Qcow2).writable(true)).unwrap();
        let name = "y".repeat(longest);

        image.bitmap_add("b", None, true).unwrap();
        image
            .change_backing_file(Some(&name), Some(Format::Raw))
            .unwrap();
        image.close().unwrap();

        qemu_img(&["rebase", "-u", "-f", "qcow2", "-b", "", text(&path)]);
        check(&path);
    }
}

#[test]
fn an_extension_that_nobody_knows_survives_another_version() {
    let medium = overlay(4096, 700, "base");
    let image = open(&medium, true);

    for version in [2, 3] {
        image.set_version(version).unwrap();

        assert_eq!(unknown_extension(&medium), filling(700));
        assert_eq!(name(&medium), "base");
    }
    image.close().unwrap();
}

#[test]
fn what_is_compressed_after_a_downgrade_is_as_version_2_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let options = CreateOptions {
        compression_type: CompressionType::Zstd,
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    };
    qcow::create(&path, &options).unwrap();
    let image = Image::open(&path, &OpenOptions::new(Format::Qcow2).writable(true)).unwrap();

    image.set_version(2).unwrap();
    image.write_compressed(0, &[7; 65536]).unwrap();
    let mut read = [0; 65536];
    image.read_at(0, &mut read).unwrap();
    image.close().unwrap();

    assert_eq!(read, [7; 65536]);
    check(&path);
    // Nobody can read it when it is not what the header says.
    assert_eq!(contents(&path)[..65536], [7; 65536]);
}
