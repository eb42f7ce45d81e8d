//! What writes do to what they do not touch: nothing.

use qcow::{Backing, CreateOptions, Format, Image, Preallocation};

use crate::peer::medium::Medium;
use crate::peer::{Rng, check, contents, qemu_img, qemu_io, text};
use crate::{MIB, created, plain, writable};

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
        image.resize(3 * MIB, Preallocation::Off).unwrap();
        let mut grown = vec![9; 2 << 20];
        image.read_at(MIB, &mut grown).unwrap();
        assert!(grown.iter().all(|byte| *byte == 0), "version {version}");
        image.close().unwrap();
        check(&path);
    }
}
