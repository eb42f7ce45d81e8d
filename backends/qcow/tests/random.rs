//! Random work on random kinds of image: what the library wrote, QEMU finds consistent and reads alike, and the other
//! way round.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod peer;

use std::path::{Path, PathBuf};

use peer::{Rng, check, contents, qemu_img, qemu_io, text};
use qcow::{Backing, CompressionType, CreateOptions, Format, Image, OpenOptions};

/// A disk and what it must hold.
struct Case {
    path: PathBuf,
    model: Vec<u8>,
    options: CreateOptions,
    snapshots: Vec<(String, Vec<u8>)>,
}

fn open(path: &Path, writable: bool) -> Image {
    Image::open(
        path,
        &OpenOptions::new(Format::Qcow2)
            .writable(writable)
            .follow_references(),
    )
    .unwrap()
}

fn new_case(dir: &Path, rng: &mut Rng) -> Case {
    let version = if rng.chance(80) { 3 } else { 2 };
    let sizes = if rng.chance(20) { 13 } else { 8 };
    let cluster_size = 512u64 << rng.below(sizes);
    let size = (rng.below(64) + 1) * 32768 + rng.below(64) * 512;
    let mut options = CreateOptions {
        version,
        cluster_size,
        ..CreateOptions::new(Format::Qcow2, size)
    };
    if version == 3 {
        options.refcount_bits = *rng.pick(&[1, 2, 4, 8, 16, 16, 16, 32, 64]);
        options.lazy_refcounts = rng.chance(20);
        options.extended_l2 = cluster_size >= 16384 && rng.chance(40);
        options.compression_type = *rng.pick(&[CompressionType::Zlib, CompressionType::Zstd]);
    }
    let path = dir.join("disk.qcow2");
    let mut model = vec![0u8; size as usize];
    let kind = rng.below(10);
    if kind < 4 {
        let (name, format) = if kind < 2 {
            ("base.raw", Format::Raw)
        } else {
            ("base.qcow2", Format::Qcow2)
        };
        let base = dir.join(name);
        let base_size = ((rng.below(2 * size / 512) + 1) * 512).min(3 << 20);
        let bytes: Vec<u8> = (0..base_size)
            .map(|i| ((i / 512) as u8).wrapping_mul(37) | 1)
            .collect();
        let raw = dir.join("base.raw");
        std::fs::write(&raw, &bytes).unwrap();
        if format == Format::Qcow2 {
            qemu_img(&[
                "convert",
                "-f",
                "raw",
                "-O",
                "qcow2",
                text(&raw),
                text(&base),
            ]);
        }
        let shared = model.len().min(bytes.len());
        model[..shared].copy_from_slice(&bytes[..shared]);
        options.backing_file = Some(name.into());
        options.backing_format = Some(format);
    } else if kind == 4 && version == 3 {
        options.data_file = Some(text(&dir.join("disk.data")).into());
        options.data_file_raw = rng.chance(50);
    }
    if rng.chance(20) && (options.backing_file.is_none() || options.extended_l2) {
        use qcow::Preallocation::{Falloc, Full, Metadata};
        options.preallocation = *rng.pick(&[Metadata, Falloc, Full]);
    }
    qcow::create(&path, &options).unwrap();
    check(&path);
    Case {
        path,
        model,
        options,
        snapshots: Vec::new(),
    }
}

fn range(rng: &mut Rng, case: &Case) -> (usize, usize) {
    let size = case.model.len() as u64;
    let start = rng.below(size);
    let longest = (size - start).min(if rng.chance(30) { 300_000 } else { 9000 });
    let (mut start, mut len) = (start, rng.below(longest) + 1);
    if rng.chance(50) {
        let unit = case.options.cluster_size;
        start -= start % unit;
        len = len.next_multiple_of(unit).min(size - start);
    }
    (start as usize, len as usize)
}

fn step(rng: &mut Rng, case: &mut Case, image: &mut Image) {
    let (start, len) = range(rng, case);
    let model = &mut case.model[start..start + len];
    match rng.below(100) {
        0..45 => {
            let seed = rng.next() as u8;
            for (i, byte) in model.iter_mut().enumerate() {
                *byte = ((start + i) / 256) as u8 ^ seed;
            }
            if rng.chance(50) {
                image.write_at(start as u64, model).unwrap();
            } else {
                // In pieces, some of them empty.
                let at = rng.below(len as u64 + 1) as usize;
                let slices = [&model[..at], &[], &model[at..]].map(std::io::IoSlice::new);
                image.write_from(start as u64, &&slices[..]).unwrap();
            }
        }
        45..60 => {
            model.fill(0);
            image
                .write_zeroes(start as u64, len as u64, rng.chance(50))
                .unwrap();
        }
        60..70 => {
            image.discard(start as u64, len as u64).unwrap();
            // A discarded range reads as zeroes or as before, never as anything else.
            let mut now = vec![0; len];
            image.read_at(start as u64, &mut now).unwrap();
            for (old, new) in model.iter_mut().zip(now) {
                assert!(
                    new == 0 || new == *old,
                    "discarded data became something else"
                );
                *old = new;
            }
        }
        70..78 if case.options.data_file.is_none() => {
            let unit = case.options.cluster_size as usize;
            let start = start - start % unit;
            let end = (start + len).next_multiple_of(unit).min(case.model.len());
            let model = &mut case.model[start..end];
            let seed = rng.next() as u8;
            for (i, byte) in model.iter_mut().enumerate() {
                *byte = (i / 64) as u8 ^ seed;
            }
            image.write_compressed(start as u64, model).unwrap();
        }
        78..82 => image.flush().unwrap(),
        82..86 => {
            let new = (rng.below(case.model.len() as u64 * 3 / 2 / 512) + 1) * 512;
            case.model.resize(new as usize, 0);
            image.resize(new, qcow::Preallocation::Off).unwrap();
        }
        88..94 if case.options.data_file.is_none() && case.options.refcount_bits >= 4 => {
            snapshot(rng, case, image)
        }
        86..88 => {
            std::mem::replace(image, open_again(case)).close().unwrap();
        }
        _ => {
            let mut now = vec![1; len];
            let at = rng.below(len as u64 + 1) as usize;
            let (first, last) = now.split_at_mut(at);
            let mut slices = [first, &mut [], last].map(std::io::IoSliceMut::new);
            image.read_into(start as u64, &mut &mut slices[..]).unwrap();
            assert!(now == *model, "read of {start}+{len} differs");
        }
    }
}

/// Narrow refcounts cannot count as many compressed clusters and snapshots as may come; nothing else may fail.
fn too_narrow(case: &Case, error: &qcow::Error) {
    assert!(
        case.options.refcount_bits <= 8 && error.kind() == qcow::ErrorKind::InvalidInput,
        "{error}"
    );
}

fn snapshot(rng: &mut Rng, case: &mut Case, image: &Image) {
    match rng.below(10) {
        0..5 if case.snapshots.len() < 5 => {
            let name = format!("s{}", rng.next());
            match image.snapshot_create(&name) {
                Ok(()) => case.snapshots.push((name, case.model.clone())),
                Err(error) => too_narrow(case, &error),
            }
        }
        5..7 if !case.snapshots.is_empty() => {
            let (name, model) = rng.pick(&case.snapshots);
            match image.snapshot_apply(name) {
                Ok(()) => case.model = model.clone(),
                Err(error) => too_narrow(case, &error),
            }
        }
        7.. if !case.snapshots.is_empty() => {
            let index = rng.below(case.snapshots.len() as u64) as usize;
            image
                .snapshot_delete(&case.snapshots.remove(index).0)
                .unwrap();
        }
        _ => {}
    }
}

/// A second handle would be refused, so the first is closed by replacing it with one that holds nothing.
fn open_again(_case: &Case) -> Image {
    let file = tempfile::NamedTempFile::new().unwrap();
    Image::open(file.path(), &OpenOptions::new(Format::Raw)).unwrap()
}

fn verify(case: &Case) {
    check(&case.path);
    let theirs = contents(&case.path);
    assert_eq!(theirs.len(), case.model.len());
    if let Some(at) = (0..theirs.len()).find(|at| theirs[*at] != case.model[*at]) {
        panic!(
            "QEMU reads {:#x} at {at:#x}, not {:#x}",
            theirs[at], case.model[at]
        );
    }
    let image = open(&case.path, false);
    let mut ours = vec![1; case.model.len()];
    image.read_at(0, &mut ours).unwrap();
    assert!(ours == case.model);
    let found = image.check(qcow::Repair::None).unwrap();
    assert_eq!(
        (found.corruptions, found.leaks, found.check_errors),
        (0, 0, 0),
        "{:?}",
        found.messages
    );
    for (name, model) in &case.snapshots {
        let options = OpenOptions::new(Format::Qcow2)
            .follow_references()
            .snapshot(Some(name.clone()));
        let old = Image::open(&case.path, &options).unwrap();
        let mut ours = vec![1; model.len()];
        old.read_at(0, &mut ours).unwrap();
        assert!(ours == *model, "snapshot {name} reads differently");
    }
    if let Some((name, model)) = case.snapshots.first() {
        let raw = case.path.with_extension("snapshot");
        let choice = format!("snapshot.name={name}");
        qemu_img(&[
            "convert",
            "-l",
            &choice,
            "-f",
            "qcow2",
            "-O",
            "raw",
            text(&case.path),
            text(&raw),
        ]);
        // QEMU reads it with the size the disk has now.
        let theirs = std::fs::read(&raw).unwrap();
        let shared = theirs.len().min(model.len());
        assert!(
            theirs[..shared] == model[..shared],
            "QEMU reads snapshot {name} differently"
        );
    }
    if case.options.data_file_raw {
        let raw = std::fs::read(case.path.with_extension("data")).unwrap();
        // QEMU writes whole clusters, even beyond the end of the disk.
        assert!(
            raw.starts_with(&case.model),
            "the raw external data file is the disk"
        );
    }
}

fn run_seed(seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng(seed);
    let mut case = new_case(dir.path(), &mut rng);
    eprintln!("seed {seed}: {:?}", case.options);
    let mut image = open(&case.path, true);
    for _ in 0..rng.below(60) + 5 {
        step(&mut rng, &mut case, &mut image);
        if image.format() == Format::Raw {
            verify(&case);
            image = open(&case.path, true);
        }
    }
    image.close().unwrap();
    verify(&case);
    their_turn(&mut rng, &mut case);
}

/// QEMU writes on, and we read it.
fn their_turn(rng: &mut Rng, case: &mut Case) {
    let mut commands = Vec::new();
    for _ in 0..8 {
        let (start, len) = range(rng, case);
        let (start, len) = (
            start - start % 512,
            (len.next_multiple_of(512)).min(case.model.len() - start + start % 512),
        );
        let byte = rng.below(255) as u8 + 1;
        if rng.chance(70) {
            case.model[start..start + len].fill(byte);
            commands.push(format!("write -P {byte} {start} {len}"));
        } else {
            case.model[start..start + len].fill(0);
            commands.push(format!(
                "write -z {} {start} {len}",
                if rng.chance(50) { "-u" } else { "" }
            ));
        }
    }
    qemu_io(&case.path, &commands);
    verify(case);
}

#[test]
fn random_work_is_consistent_for_qemu_and_reads_alike() {
    let base: u64 = std::env::var("QCOW_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(1);
    let count: u64 = std::env::var("QCOW_CASES")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(60);
    for seed in base..base + count {
        run_seed(seed);
    }
}

#[test]
fn backing_of_images_is_given_explicitly_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("base.raw"), dir.path().join("top.qcow2"));
    std::fs::write(&base, vec![7u8; 1 << 20]).unwrap();
    let options = CreateOptions {
        backing_file: Some("base.raw".into()),
        backing_format: Some(Format::Raw),
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    };
    qcow::create(&top, &options).unwrap();
    let mut buf = [0u8; 512];
    let alone = Image::open(&top, &OpenOptions::new(Format::Qcow2)).unwrap();
    assert_eq!(
        alone.read_at(0, &mut buf).unwrap_err().kind(),
        qcow::ErrorKind::Backing
    );
    let chain = Image::open(
        &top,
        &OpenOptions::new(Format::Qcow2).backing(Backing::Open),
    )
    .unwrap();
    chain.read_at(0, &mut buf).unwrap();
    assert_eq!(buf, [7u8; 512]);
}
