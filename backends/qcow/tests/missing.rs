//! Data clusters past the end of the file: zeroes for a guest, an error for whoever asks for one.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::fs::OpenOptions as FileOptions;

use qcow::{CreateOptions, ErrorKind, Format, Image, OpenOptions, create};

const CLUSTER: u64 = 65536;

#[test]
fn what_is_missing_reads_as_zeroes_unless_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    create(&path, &CreateOptions::new(Format::Qcow2, 64 * CLUSTER)).unwrap();
    let options = OpenOptions::new(Format::Qcow2);
    let image = Image::open(&path, &options.clone().writable(true)).unwrap();
    image.write_at(0, &vec![7; 64 * CLUSTER as usize]).unwrap();
    image.close().unwrap();
    let file = FileOptions::new().write(true).open(&path).unwrap();
    let data = Image::open(&path, &options)
        .unwrap()
        .map(0, CLUSTER)
        .unwrap()
        .offset
        .unwrap();
    // Half of the last cluster that is there.
    file.set_len(data + 60 * CLUSTER - CLUSTER / 2).unwrap();
    let mut buf = vec![1; 8 * CLUSTER as usize];

    let image = Image::open(&path, &options).unwrap();
    image.read_at(56 * CLUSTER, &mut buf).unwrap();
    let there = (4 * CLUSTER - CLUSTER / 2) as usize;
    assert!(buf[..there].iter().all(|&byte| byte == 7));
    assert!(buf[there..].iter().all(|&byte| byte == 0));

    let image = Image::open(&path, &options.refuse_missing(true)).unwrap();
    let error = image.read_at(56 * CLUSTER, &mut buf).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let says = format!("the data at {:#x} lies past the end", data + 60 * CLUSTER);
    assert!(error.to_string().contains(&says), "{error}");
    image
        .read_at(56 * CLUSTER, &mut buf[..4 * CLUSTER as usize])
        .unwrap();
    let extents = [0, 60].map(|cluster| {
        image
            .map(cluster * CLUSTER, 64 * CLUSTER - cluster * CLUSTER)
            .unwrap()
    });
    assert_eq!(extents.clone().map(|extent| extent.missing), [false, true]);
    assert_eq!(
        extents.map(|extent| extent.length),
        [60 * CLUSTER, 4 * CLUSTER]
    );
}
