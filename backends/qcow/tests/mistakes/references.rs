//! What an image says of other files: nothing is opened, and nothing believed, that nobody allowed.

use qcow::{CreateOptions, ErrorKind, Format, Image, OpenOptions, Repair};

use crate::peer::text;
use crate::{MIB, created, patch, plain, read_only, refused, writable};

// CVE-2008-2004, CVE-2026-27211.
#[test]
fn a_raw_disk_into_which_the_guest_wrote_a_qcow2_header_stays_raw() {
    let dir = tempfile::tempdir().unwrap();
    let (path, evil) = (dir.path().join("disk.raw"), plain(dir.path()));
    qcow::create(&path, &CreateOptions::new(Format::Raw, 4 * MIB)).unwrap();
    let header = std::fs::read(&evil).unwrap();
    let raw = OpenOptions::new(Format::Raw).follow_references();
    Image::open(&path, &raw.clone().writable(true))
        .unwrap()
        .write_at(0, &header)
        .unwrap();
    let again = Image::open(&path, &raw).unwrap();
    assert_eq!(
        (again.format(), again.virtual_size()),
        (Format::Raw, 4 * MIB)
    );
    let mut start = [0; 4];
    again.read_at(0, &mut start).unwrap();
    assert_eq!(&start, b"QFI\xfb");
    assert!(again.info().unwrap().qcow2.is_none());
}

#[test]
fn a_backing_file_without_a_recorded_format_is_not_probed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("base"), vec![1; 65536]).unwrap();
    let options = CreateOptions {
        backing_file: Some("base".into()),
        backing_format: Some(Format::Raw),
        ..CreateOptions::new(Format::Qcow2, MIB)
    };
    let path = created(dir.path(), &options);
    Image::open(&path, &read_only().follow_references()).unwrap();
    // The extension becomes one of an unknown type.
    patch(&path, 112, &[0x11; 4]);
    refused(
        &path,
        &read_only().follow_references(),
        ErrorKind::Backing,
        "no format",
    );
    let given = read_only()
        .follow_references()
        .unformatted_backing(Some(Format::Raw));
    Image::open(&path, &given).unwrap();
}

// CVE-2015-5163, CVE-2024-32498, CVE-2024-4467.
#[test]
fn info_and_check_open_neither_backing_nor_data_file() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let options = CreateOptions {
        data_file: Some(text(&data).into()),
        ..CreateOptions::new(Format::Qcow2, MIB)
    };
    let path = created(dir.path(), &options);
    Image::open(&path, &writable().follow_references())
        .unwrap()
        .write_at(0, &[1; 512])
        .unwrap();
    std::fs::remove_file(&data).unwrap();
    let image = Image::open(&path, &read_only()).unwrap();
    assert_eq!(
        image.info().unwrap().qcow2.unwrap().data_file.as_deref(),
        Some(text(&data))
    );
    assert_eq!(image.check(Repair::None).unwrap().corruptions, 0);
    assert_eq!(
        image.read_at(0, &mut [0; 512]).unwrap_err().kind(),
        ErrorKind::Backing
    );
    drop(image);
    refused(
        &path,
        &read_only().follow_references(),
        ErrorKind::Io,
        "data",
    );
}

#[test]
fn json_and_protocol_names_in_an_image_open_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, b"secret").unwrap();
    for name in [
        format!(
            "json:{{\"driver\":\"raw\",\"file\":{{\"filename\":\"{}\"}}}}",
            text(&secret)
        ),
        "nbd://host/export".to_owned(),
        "fat:rw:dir".to_owned(),
    ] {
        let options = CreateOptions {
            backing_file: Some(name.clone()),
            backing_format: Some(Format::Raw),
            ..CreateOptions::new(Format::Qcow2, MIB)
        };
        let path = created(dir.path(), &options);
        refused(
            &path,
            &read_only().follow_references(),
            ErrorKind::Unsupported,
            "not a plain file name",
        );
        assert_eq!(
            Image::open(&path, &read_only())
                .unwrap()
                .info()
                .unwrap()
                .backing_filename,
            Some(name)
        );
    }
}

#[test]
fn chains_that_loop_or_are_too_long_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let on = |name: &str, below: &str| {
        let options = CreateOptions {
            backing_file: Some(below.into()),
            backing_format: Some(Format::Qcow2),
            ..CreateOptions::new(Format::Qcow2, MIB)
        };
        qcow::create(dir.path().join(name), &options).unwrap();
    };
    on("a", "b");
    on("b", "./c");
    on("c", "a");
    refused(
        &dir.path().join("a"),
        &read_only().follow_references(),
        ErrorKind::Backing,
        "loops",
    );
    // A link does not hide it.
    std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
    on("c", "link");
    refused(
        &dir.path().join("a"),
        &read_only().follow_references(),
        ErrorKind::Backing,
        "loops",
    );
    for index in 0..10 {
        on(&format!("n{index}"), &format!("n{}", index + 1));
    }
    let options = read_only().follow_references().max_depth(8);
    refused(
        &dir.path().join("n0"),
        &options,
        ErrorKind::Backing,
        "more than 8",
    );
}
