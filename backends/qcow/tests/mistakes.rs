//! One test for each mistake that hurt users of other implementations (and of QEMU), by its name.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod peer;

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use peer::medium::Medium;
use peer::{Rng, check, contents, qemu_img, qemu_io, text};
use qcow::{
    Backing, CreateOptions, Destination, ErrorKind, Format, Image, OpenOptions, Repair, Source,
    Storage,
};

const MIB: u64 = 1 << 20;

fn created(dir: &Path, options: &CreateOptions) -> PathBuf {
    let path = dir.join("disk.qcow2");
    qcow::create(&path, options).unwrap();
    path
}

fn plain(dir: &Path) -> PathBuf {
    created(dir, &CreateOptions::new(Format::Qcow2, 64 * MIB))
}

fn read_only() -> OpenOptions {
    OpenOptions::new(Format::Qcow2)
}

fn writable() -> OpenOptions {
    read_only().writable(true)
}

fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .write_all_at(bytes, offset)
        .unwrap();
}

fn be64(path: &Path, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    std::fs::File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, offset)
        .unwrap();
    u64::from_be_bytes(bytes)
}

fn refused(path: &Path, options: &OpenOptions, kind: ErrorKind, says: &str) {
    let error = Image::open(path, options).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(
        error.to_string().contains(says),
        "{error} does not say {says}"
    );
    assert!(
        !error.to_string().contains('\n'),
        "{error} is more than one line"
    );
}

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
    let told = read_only()
        .follow_references()
        .unformatted_backing(Some(Format::Raw));
    Image::open(&path, &told).unwrap();
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

// CVE-2014-0143 to -0147, and their relatives.
#[test]
fn sizes_and_places_in_the_header_beyond_the_limits_are_refused() {
    let cases: &[(u64, &[u8], &str)] = &[
        (20, &8u32.to_be_bytes(), "cluster size"),
        (20, &22u32.to_be_bytes(), "cluster size"),
        (24, &u64::MAX.to_be_bytes(), "Image is too big"),
        (36, &u32::MAX.to_be_bytes(), "L1 table too large"),
        (36, &0u32.to_be_bytes(), "L1 table is too small"),
        (
            40,
            &12345u64.to_be_bytes(),
            "Active L1 table offset invalid",
        ),
        (
            40,
            &(1u64 << 60).to_be_bytes(),
            "Active L1 table offset invalid",
        ),
        (
            48,
            &7u64.to_be_bytes(),
            "Reference count table offset invalid",
        ),
        (
            48,
            &(u64::MAX << 16).to_be_bytes(),
            "Reference count table offset invalid",
        ),
        (
            56,
            &u32::MAX.to_be_bytes(),
            "Reference count table too large",
        ),
        (56, &0u32.to_be_bytes(), "reference count table"),
        (60, &65537u32.to_be_bytes(), "Snapshot table too large"),
        (96, &7u32.to_be_bytes(), "entry width"),
        (100, &72u32.to_be_bytes(), "header too short"),
        (100, &(1u32 << 30).to_be_bytes(), "header exceeds"),
        (
            8,
            &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 4, 0],
            "Backing file name too long",
        ),
        (
            8,
            &[0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 2, 0],
            "backing file offset",
        ),
        (116, &u32::MAX.to_be_bytes(), "extension"),
        (4, &4u32.to_be_bytes(), "version"),
    ];
    for (offset, bytes, says) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = plain(dir.path());
        patch(&path, *offset, bytes);
        let error = Image::open(&path, &read_only()).map(|_| ()).unwrap_err();
        assert!(
            error.to_string().contains(says),
            "field at {offset}: {error} does not say {says}"
        );
    }
}

#[test]
fn an_image_cut_off_anywhere_opens_or_is_refused_but_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    Image::open(&path, &writable())
        .unwrap()
        .write_at(0, &[1; 100_000])
        .unwrap();
    let whole = std::fs::read(&path).unwrap();
    for len in (0..1200)
        .step_by(5)
        .chain((1200..whole.len()).step_by(4097))
    {
        let medium = Medium::with(whole[..len].to_vec());
        if let Ok(image) = Image::open_storage(Box::new(medium), "cut", &read_only()) {
            let _ = image.read_at(0, &mut vec![0; 200_000]);
            let _ = image.check(Repair::None);
        }
    }
}

#[test]
fn tables_that_overlap_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    // The L1 table is where the refcount table is.
    let refcount_table = be64(&path, 48);
    patch(&path, 40, &refcount_table.to_be_bytes());
    refused(&path, &writable(), ErrorKind::Corrupt, "overlaps");
}

#[test]
fn a_write_that_would_hit_metadata_marks_the_image_corrupt_instead() {
    for victim in [0u64, 65536, 131_072, 196_608] {
        let dir = tempfile::tempdir().unwrap();
        let path = plain(dir.path());
        Image::open(&path, &writable())
            .unwrap()
            .write_at(0, &[1; 65536])
            .unwrap();
        let l2 = be64(&path, be64(&path, 40)) & 0x00ff_ffff_ffff_fe00;
        let entry = 1 << 63 | victim;
        // Cluster 0 is the header; offset 0 in an entry means none, so the entry after the first is taken for it.
        patch(&path, l2, &entry.to_be_bytes());
        let before = std::fs::read(&path).unwrap();
        if victim == 0 {
            continue;
        }
        let image = Image::open(&path, &writable()).unwrap();
        let error = image.write_at(0, &[2; 512]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert_eq!(
            image.write_at(MIB, &[2; 512]).unwrap_err().kind(),
            ErrorKind::ReadOnly
        );
        drop(image);
        let after = std::fs::read(&path).unwrap();
        assert!(
            before[512..] == after[512..],
            "nothing but the header was written"
        );
        assert!(
            Image::open(&path, &read_only())
                .unwrap()
                .info()
                .unwrap()
                .qcow2
                .unwrap()
                .corrupt
        );
        refused(&path, &writable(), ErrorKind::Corrupt, "marked corrupt");
    }
}

#[test]
fn reserved_bits_and_unaligned_offsets_in_tables_are_corruption() {
    for entry in [
        1u64 << 63 | 0x50200,
        1 << 63 | 0x50000 | 1 << 57,
        1 << 63 | 0x50000 | 1 << 3,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = plain(dir.path());
        Image::open(&path, &writable())
            .unwrap()
            .write_at(0, &[1; 65536])
            .unwrap();
        let l2 = be64(&path, be64(&path, 40)) & 0x00ff_ffff_ffff_fe00;
        patch(&path, l2, &entry.to_be_bytes());
        let image = Image::open(&path, &read_only()).unwrap();
        assert_eq!(
            image.read_at(0, &mut [0; 512]).unwrap_err().kind(),
            ErrorKind::Corrupt
        );
        assert!(image.check(Repair::None).unwrap().corruptions > 0);
    }
}

#[test]
fn unknown_incompatible_bits_are_refused_by_the_name_the_image_gives_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    patch(&path, 72, &(1u64 << 40).to_be_bytes());
    refused(
        &path,
        &read_only(),
        ErrorKind::Unsupported,
        "Unknown incompatible feature: 10000000000",
    );
    // The first entry of the feature name table becomes one for that bit.
    patch(&path, 120, b"\0\x28time travel\0");
    refused(&path, &read_only(), ErrorKind::Unsupported, "time travel");
}

#[test]
fn unknown_autoclear_bits_are_cleared_by_a_writer_and_kept_by_a_reader() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    patch(&path, 88, &(1u64 << 40).to_be_bytes());
    drop(Image::open(&path, &read_only()).unwrap());
    assert_eq!(be64(&path, 88), 1 << 40);
    drop(Image::open(&path, &writable()).unwrap());
    assert_eq!(be64(&path, 88), 0);
}

#[test]
fn unknown_header_extensions_survive_changes_of_the_header() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    // An unknown extension in front of the list end.
    let mut extension = Vec::new();
    extension.extend_from_slice(&0x1234_5678u32.to_be_bytes());
    extension.extend_from_slice(&6u32.to_be_bytes());
    extension.extend_from_slice(b"keep!!\0\0\0\0\0\0\0\0\0\0");
    patch(&path, 112, &extension);
    let image = Image::open(&path, &writable()).unwrap();
    image.bitmap_add("b", None, false).unwrap();
    image.snapshot_create("s").unwrap();
    image.resize(128 * MIB, qcow::Preallocation::Off).unwrap();
    image.close().unwrap();
    let header = std::fs::read(&path).unwrap()[..512].to_vec();
    assert!(
        header.windows(14).any(|window| window == &extension[..14]),
        "the extension is gone"
    );
    check(&path);
}

#[test]
fn an_encrypted_image_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for method in 1u32..=2 {
        let path = plain(dir.path());
        patch(&path, 32, &method.to_be_bytes());
        refused(&path, &read_only(), ErrorKind::Unsupported, "encrypted");
    }
}

#[test]
fn the_zero_flag_is_not_masked_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    // A zero cluster that keeps its data.
    qemu_io(
        &path,
        &["write -P 7 0 128k".into(), "write -z 64k 64k".into()],
    );
    let image = Image::open(&path, &writable()).unwrap();
    let mut buf = vec![9; 131_072];
    image.read_at(0, &mut buf).unwrap();
    assert!(
        buf[..65536].iter().all(|byte| *byte == 7) && buf[65536..].iter().all(|byte| *byte == 0)
    );
    // A small write into it must not uncover the old data around it.
    image.write_at(70_000, &[1]).unwrap();
    image.read_at(0, &mut buf).unwrap();
    assert_eq!(
        buf[65536..]
            .iter()
            .map(|byte| usize::from(*byte))
            .sum::<usize>(),
        1
    );
    image.close().unwrap();
    check(&path);
}

#[test]
fn writes_do_not_go_into_clusters_shared_with_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    qemu_io(&path, &["write -P 7 0 1M".into()]);
    qemu_img(&["snapshot", "-c", "old", text(&path)]);
    let image = Image::open(&path, &writable()).unwrap();
    image.write_at(1000, &[8; 70_000]).unwrap();
    image.write_zeroes(200_000, 100_000, true).unwrap();
    image.discard(400_000, 200_000).unwrap();
    image.write_compressed(655_360, &[3; 65536]).unwrap();
    image.close().unwrap();
    check(&path);
    qemu_img(&["snapshot", "-a", "old", text(&path)]);
    assert!(
        contents(&path)[..1 << 20].iter().all(|byte| *byte == 7),
        "the snapshot was written to"
    );
}

#[test]
fn lazy_refcounts_stay_as_the_user_set_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = created(
        dir.path(),
        &CreateOptions {
            lazy_refcounts: true,
            ..CreateOptions::new(Format::Qcow2, MIB)
        },
    );
    let info = |path: &Path| {
        Image::open(path, &read_only())
            .unwrap()
            .info()
            .unwrap()
            .qcow2
            .unwrap()
    };
    let image = Image::open(&path, &writable()).unwrap();
    image.write_at(0, &[1; 4096]).unwrap();
    image.flush().unwrap();
    let crashed = dir.path().join("crashed.qcow2");
    std::fs::copy(&path, &crashed).unwrap();
    image.close().unwrap();
    assert!(info(&path).lazy_refcounts && !info(&path).dirty);
    // After a crash the refcounts are behind, and the image says so; a writer counts anew and leaves the option alone.
    assert!(info(&crashed).dirty);
    assert!(
        Image::open(&crashed, &read_only())
            .unwrap()
            .check(Repair::None)
            .unwrap()
            .corruptions
            > 0
    );
    Image::open(&crashed, &writable()).unwrap().close().unwrap();
    assert!(info(&crashed).lazy_refcounts && !info(&crashed).dirty);
    check(&crashed);
}

#[test]
fn refcount_tables_of_any_legal_size_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=512",
        text(&path),
        "16G",
    ]);
    let image = Image::open(&path, &writable()).unwrap();
    image.write_at(15 << 30, &[1; 4096]).unwrap();
    image.close().unwrap();
    check(&path);
    // As some tools write it: one table of 2 MiB clusters for a large disk.
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=2M,preallocation=metadata",
        text(&path),
        "1T",
    ]);
    Image::open(&path, &writable()).unwrap().close().unwrap();
}

#[test]
fn tables_are_not_overwritten_however_long_it_takes() {
    let size = 256 * MIB;
    let options = CreateOptions {
        cluster_size: 4096,
        ..CreateOptions::new(Format::Qcow2, size)
    };
    let medium = Medium::silent();
    qcow::create_in(&medium, &options).unwrap();
    // Far more tables than the cache holds, and space freed and used again all the time.
    let image = Image::open_storage(
        Box::new(medium.clone()),
        "disk",
        &writable().cache_bytes(1 << 16),
    )
    .unwrap();
    let mut rng = Rng(1);
    let mut model = std::collections::HashMap::new();
    for step in 0..20_000u64 {
        let cluster = rng.below(size / 4096 / 16) * 16;
        match rng.below(10) {
            0 => {
                model.insert(cluster, 0);
                image.write_zeroes(cluster * 4096, 4096, true).unwrap();
            }
            1 => {
                model.insert(cluster, 0);
                image.discard(cluster * 4096, 4096).unwrap();
            }
            _ => {
                let value = (step % 255) as u8 + 1;
                model.insert(cluster, value);
                image.write_at(cluster * 4096, &[value; 4096]).unwrap();
            }
        }
    }
    for (cluster, value) in &model {
        let mut buf = [0; 4096];
        image.read_at(cluster * 4096, &mut buf).unwrap();
        assert!(buf == [*value; 4096], "cluster {cluster}");
    }
    image.close().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    std::fs::write(&path, &medium.state().bytes).unwrap();
    check(&path);
}

#[test]
fn several_threads_on_one_image_do_not_get_in_each_others_way() {
    let dir = tempfile::tempdir().unwrap();
    let options = CreateOptions {
        cluster_size: 16384,
        ..CreateOptions::new(Format::Qcow2, 16 * MIB)
    };
    let path = created(dir.path(), &options);
    let image = Image::open(&path, &writable()).unwrap();
    const THREADS: u64 = 4;
    let sectors = 16 * MIB / 512;
    // Each thread has every fourth sector, so that all of them share every cluster.
    let models: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let work = |thread: u64| {
            let image = &image;
            move || {
                let mut rng = Rng(thread);
                let mut model = vec![0u8; (sectors / THREADS) as usize];
                for _ in 0..1500 {
                    let index = rng.below(sectors / THREADS);
                    let offset = (index * THREADS + thread) * 512;
                    let value = (rng.below(255) + 1) as u8;
                    match rng.below(20) {
                        0 => image.flush().unwrap(),
                        1..3 => {
                            model[index as usize] = 0;
                            image.write_zeroes(offset, 512, true).unwrap();
                        }
                        3..6 => {
                            let mut buf = [0; 512];
                            image.read_at(offset, &mut buf).unwrap();
                            assert_eq!(buf, [model[index as usize]; 512]);
                        }
                        _ => {
                            model[index as usize] = value;
                            image.write_at(offset, &[value; 512]).unwrap();
                        }
                    }
                }
                model
            }
        };
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(work(thread)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    image.close().unwrap();
    check(&path);
    let disk = contents(&path);
    for (sector, bytes) in disk.chunks(512).enumerate() {
        let expected = models[sector % THREADS as usize][sector / THREADS as usize];
        assert!(
            bytes.iter().all(|byte| *byte == expected),
            "sector {sector}"
        );
    }
}

#[test]
fn a_read_only_open_never_changes_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    Image::open(&path, &writable())
        .unwrap()
        .write_at(0, &[1; 4096])
        .unwrap();
    // Dirty, with unknown autoclear bits and a wrong refcount: much that a writer would put right.
    patch(&path, 72, &1u64.to_be_bytes());
    patch(&path, 88, &(1u64 << 30).to_be_bytes());
    patch(&path, 2 * 65536 + 10, &[0, 9]);
    let before = std::fs::read(&path).unwrap();
    let image = Image::open(&path, &read_only()).unwrap();
    image.read_at(0, &mut [0; 65536]).unwrap();
    assert!(image.check(Repair::None).unwrap().leaks > 0);
    assert_eq!(
        image.check(Repair::All).unwrap_err().kind(),
        ErrorKind::ReadOnly
    );
    assert_eq!(
        image.write_at(0, &[1]).unwrap_err().kind(),
        ErrorKind::ReadOnly
    );
    image.close().unwrap();
    assert!(before == std::fs::read(&path).unwrap());
}

#[test]
fn a_compressed_cluster_cannot_grow_beyond_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain(dir.path());
    let image = Image::open(&path, &writable()).unwrap();
    image.write_compressed(0, &[5; 65536]).unwrap();
    image.close().unwrap();
    // The same data, in an image that says its clusters are smaller: what it inflates to is then too much.
    patch(&path, 20, &15u32.to_be_bytes());
    let image = Image::open(&path, &read_only().for_check(true)).unwrap();
    let _ = image.read_at(0, &mut [0; 32768]);
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

/// Storage that fails from some write on.
struct Failing {
    inner: Medium,
    writes_left: std::sync::atomic::AtomicI64,
    sync_fails: bool,
}

impl Failing {
    fn spend(&self) -> io::Result<()> {
        match self
            .writes_left
            .fetch_sub(1, std::sync::atomic::Ordering::Relaxed)
        {
            left if left > 0 => Ok(()),
            _ => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}

impl Storage for Failing {
    fn read(
        &self,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        self.inner.read(offset, dst, at, len)
    }
    fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> io::Result<()> {
        self.spend()?;
        self.inner.write(offset, src, at, len)
    }
    fn sync(&self) -> io::Result<()> {
        if self.sync_fails {
            self.spend()
        } else {
            Ok(())
        }
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.spend()?;
        self.inner.write_zeroes(offset, len, unmap)
    }
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.allocate(offset, len)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.inner.next_data(offset)
    }
    fn allocated(&self) -> io::Result<u64> {
        self.inner.allocated()
    }
}

#[test]
fn a_full_host_gives_errors_and_leaves_a_consistent_image() {
    for writes in 1..60 {
        let medium = Medium::default();
        let options = CreateOptions {
            cluster_size: 512,
            ..CreateOptions::new(Format::Qcow2, MIB)
        };
        qcow::create_in(&medium, &options).unwrap();
        let storage = Failing {
            inner: medium.clone(),
            writes_left: writes.into(),
            sync_fails: false,
        };
        let image = Image::open_storage(Box::new(storage), "full", &writable()).unwrap();
        let mut failed = false;
        for index in 0..40u64 {
            failed |= image.write_at(index * 7000, &[1; 3000]).is_err();
            failed |= image.flush().is_err();
        }
        // What could not be written is told at the latest when the image is closed.
        assert!(failed | image.close().is_err());
        let again = Image::open_storage(Box::new(medium), "full", &read_only()).unwrap();
        let found = again.check(Repair::None).unwrap();
        assert_eq!(
            found.corruptions, 0,
            "after {writes} writes: {:?}",
            found.messages
        );
    }
}

#[test]
fn errors_at_close_reach_the_caller_and_a_failed_sync_is_not_forgotten() {
    let medium = Medium::default();
    qcow::create_in(&medium, &CreateOptions::new(Format::Qcow2, MIB)).unwrap();
    let storage = |left: i64| Failing {
        inner: medium.clone(),
        writes_left: left.into(),
        sync_fails: true,
    };
    let image = Image::open_storage(Box::new(storage(1)), "x", &writable()).unwrap();
    image.write_at(0, &[1; 65536]).unwrap();
    assert!(image.close().is_err());
    let image = Image::open_storage(Box::new(storage(2)), "x", &writable()).unwrap();
    image.write_at(0, &[1; 65536]).unwrap();
    assert!(image.flush().is_err());
    let error = image.flush().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
}

#[test]
fn backing_data_is_never_uncovered_by_a_discard_or_by_growth() {
    for version in [2, 3] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("base"), vec![7; 4 << 20]).unwrap();
        let options = CreateOptions {
            version,
            backing_file: Some("base".into()),
            backing_format: Some(Format::Raw),
            ..CreateOptions::new(Format::Qcow2, MIB)
        };
        let path = created(dir.path(), &options);
        let image = Image::open(&path, &writable().backing(Backing::Open)).unwrap();
        image.write_at(0, &[1; 65536]).unwrap();
        image.discard(0, 65536).unwrap();
        let mut buf = vec![9; 65536];
        image.read_at(0, &mut buf).unwrap();
        assert!(
            buf.iter().all(|byte| *byte == 0 || *byte == 1),
            "version {version}"
        );
        image.resize(3 * MIB, qcow::Preallocation::Off).unwrap();
        let mut grown = vec![9; 2 << 20];
        image.read_at(MIB, &mut grown).unwrap();
        assert!(grown.iter().all(|byte| *byte == 0), "version {version}");
        image.close().unwrap();
        check(&path);
    }
}
