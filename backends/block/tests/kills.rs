//! A backend is killed again and again while the guest writes: every completed write is there, and no cluster leaks.
//!
//! `BLOCK_KILLS` says how many kills there are on each kind of image, `BLOCK_SEED` repeats a run.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]
// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::path::{Path, PathBuf};
use std::process::Command;

use peer::{Backend, Guest};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

const BLOCK: usize = 4096;
const SECTORS: u64 = BLOCK as u64 / 512;
const BLOCKS: u64 = 8192;
const SIZE: u64 = BLOCKS * BLOCK as u64;
/// The most requests in flight when the backend is killed.
const BATCH: u64 = 24;
/// The flag of a write of zeroes that may give the space back.
const UNMAP: u32 = 1;
/// The stamp of a block whose content is undefined.
const UNDEFINED: u64 = u64::MAX;
/// After so many kills the whole disk is read.
const READ_AFTER: u32 = 100;

fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }
}

/// What a block holds: a stamp in each word, or nothing.
fn content(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK / 8)
}

struct Life {
    image: PathBuf,
    format: &'static str,
    backend: Backend,
    guest: Guest,
    random: Random,
    /// The stamp of each block.
    model: Vec<u64>,
    stamp: u64,
}

impl Life {
    fn begin(image: &Path, format: &'static str, seed: u32) -> Self {
        let backend = Backend::start(image, format, &[]);
        let guest = Guest::connect(&backend, 1);
        Self {
            image: image.to_owned(),
            format,
            backend,
            guest,
            random: Random(u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            model: vec![0; BLOCKS as usize],
            stamp: 0,
        }
    }

    /// Posts a request of a random kind on a block of its own.
    fn post(&mut self, slot: u64, block: u64) -> u16 {
        let sector = block * SECTORS;
        let known = &mut self.model[block as usize];
        match self.random.below(10) {
            0 => self
                .guest
                .post_block(0, slot, (VIRTIO_BLK_T_FLUSH, 0), (0, false)),
            1 => {
                *known = 0;
                self.post_range(VIRTIO_BLK_T_WRITE_ZEROES, slot, sector, UNMAP)
            }
            2 => {
                // What a discarded block reads as is not defined.
                *known = UNDEFINED;
                self.post_range(VIRTIO_BLK_T_DISCARD, slot, sector, 0)
            }
            _ => {
                self.stamp += 1;
                *known = self.stamp;
                self.guest.put(Guest::data(slot), &content(self.stamp));
                self.guest
                    .post_block(0, slot, (VIRTIO_BLK_T_OUT, sector), (BLOCK as u32, false))
            }
        }
    }

    /// Posts a request on the block at `sector` that has no data but the range.
    fn post_range(&mut self, kind: u32, slot: u64, sector: u64, flags: u32) -> u16 {
        let mut range = sector.to_le_bytes().to_vec();
        range.extend((SECTORS as u32).to_le_bytes());
        range.extend(flags.to_le_bytes());
        self.guest.put(Guest::data(slot), &range);
        self.guest.post_block(0, slot, (kind, 0), (16, false))
    }

    /// Posts requests, kills the backend when some of them are done, and waits for all of them.
    fn kill_once(&mut self) {
        let count = 1 + self.random.below(BATCH);
        let first = self.random.below(BLOCKS);
        // Apart by an odd number, and so all different.
        let blocks: Vec<u64> = (0..count).map(|at| (first + at * 2047) % BLOCKS).collect();
        let mut heads = Vec::new();
        for (slot, &block) in (0..).zip(&blocks) {
            heads.push(self.post(slot, block));
        }
        let before = self.guest.used_index(0);
        let done_first = self.random.below(count + 1) as u16;
        self.guest.kick(0);
        let start = std::time::Instant::now();
        while self.guest.used_index(0).wrapping_sub(before) < done_first {
            assert!(start.elapsed() < peer::PATIENCE, "the backend is stuck");
            std::hint::spin_loop();
        }
        self.backend.kill_and_restart(&self.image, self.format, &[]);
        self.guest.reconnect(&self.backend);

        let done = self.guest.wait_used(0, count as u16);
        let mut expected: Vec<u32> = heads.iter().map(|&head| head.into()).collect();
        let mut completed: Vec<u32> = done.iter().map(|&(head, _)| head).collect();
        expected.sort_unstable();
        completed.sort_unstable();
        assert_eq!(completed, expected, "each exactly once");
        for head in heads {
            let chain = self.guest.chain(0, head);
            self.guest.reuse(0, chain);
        }
        for slot in 0..count {
            assert_eq!(self.guest.status(slot), 0, "request {slot} of {count}");
        }
        for &block in &blocks {
            self.check(block);
        }
    }

    fn check(&mut self, block: u64) {
        let stamp = self.model[block as usize];
        if stamp != UNDEFINED {
            let found = self.guest.read(block * SECTORS, BLOCK as u32);
            let first = u64::from_le_bytes(found[..8].try_into().unwrap());
            assert!(
                found == content(stamp),
                "block {block} has {first}, not {stamp}"
            );
        }
    }

    fn end(self) -> Vec<u64> {
        drop(self.guest);
        let (status, said) = self.backend.end();
        assert!(status.success(), "{said}");
        self.model
    }
}

fn kills(make: impl Fn(&Path) -> (PathBuf, &'static str)) {
    let (kills, seed) = (number("BLOCK_KILLS", 30), number("BLOCK_SEED", 1));
    let folder = tempfile::tempdir().unwrap();
    let (image, format) = make(folder.path());
    let mut life = Life::begin(&image, format, seed);
    for kill in 1..=kills {
        life.kill_once();
        if kill % READ_AFTER == 0 || kill == kills {
            (0..BLOCKS).for_each(|block| life.check(block));
        }
    }
    let model = life.end();

    compare(&image, format, &model);
    if format == "qcow2" {
        no_leak(&image);
    }
    println!("{kills} kills from seed {seed} on {}", image.display());
}

/// The image holds what the model says.
fn compare(image: &Path, format: &str, model: &[u64]) {
    let format = match format {
        "raw" => qcow::Format::Raw,
        _ => qcow::Format::Qcow2,
    };
    let options = qcow::OpenOptions::new(format).follow_references();
    let image = qcow::Image::open(image, &options).unwrap();
    let mut found = vec![0; BLOCK];
    for (block, &stamp) in (0..).zip(model) {
        image.read_at(block * BLOCK as u64, &mut found).unwrap();
        assert!(
            stamp == UNDEFINED || found == content(stamp),
            "block {block}"
        );
    }
}

/// The reference finds the image in order, without a cluster that nothing refers to.
fn no_leak(image: &Path) {
    let mut check = Command::new("qemu-img");
    check.args(["check", "-f", "qcow2"]).arg(image);
    let output = check.output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
}

fn qcow2(folder: &Path, change: impl Fn(&mut qcow::CreateOptions)) -> (PathBuf, &'static str) {
    let image = folder.join("disk.qcow2");
    let mut options = qcow::CreateOptions::new(qcow::Format::Qcow2, SIZE);
    change(&mut options);
    qcow::create(&image, &options).unwrap();
    (image, "qcow2")
}

#[test]
fn a_raw_image_loses_nothing() {
    kills(|folder| {
        let image = folder.join("disk.raw");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(SIZE).unwrap();
        (image, "raw")
    });
}

#[test]
fn a_qcow2_image_loses_nothing_and_leaks_nothing() {
    kills(|folder| qcow2(folder, |_| ()));
}

#[test]
fn a_qcow2_image_with_lazy_refcounts_loses_nothing_and_leaks_nothing() {
    kills(|folder| {
        qcow2(folder, |options| {
            options.lazy_refcounts = true;
            options.cluster_size = 4096;
        })
    });
}
