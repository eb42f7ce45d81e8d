//! Tests of a block device.

use alloc::vec;
use alloc::vec::Vec;

use crc32fast::Hasher;

use super::DISK_VECTOR;
use crate::blk::{Disk, Operation, Request};
use crate::cmdline::CommandLine;
use crate::pattern;
use crate::pci::Configuration;
use crate::serial::say;
use crate::smp::ticks;

const SECTOR: u64 = 512;
/// The queue of the block driver has 16 entries, and with direct descriptors a request takes three.
const DEPTH: u64 = 5;
/// Bytes of memory that no device is told of.
const BYSTANDER: usize = 1 << 20;
/// Not the vector of any other test.
const OTHER_VECTOR: u8 = 0x50;
/// Time stamp counter ticks in which an interrupt would arrive: about 10 ms.
const A_WHILE: u64 = 30_000_000;

fn open(words: &CommandLine, configuration: Configuration) -> Disk {
    let mut disk = Disk::find(configuration, words.number("disk", 0) as usize, DISK_VECTOR);
    let mut serial = [0; 20];
    let length = disk.serial(&mut serial);
    let serial = core::str::from_utf8(&serial[..length]).unwrap_or("?");
    say!(
        "blk sectors={} read-only={} serial={serial}",
        disk.sectors(),
        disk.is_read_only()
    );
    disk
}

/// Reads, writes, flushes, reads back.
pub(super) fn check(words: &CommandLine, configuration: Configuration) {
    let mut disk = open(words, configuration);
    let size = words.number("size", 8);
    let depth = words.number("depth", DEPTH) as usize;
    let seed = words.number("seed", 1);
    let read = 0..words.number("read", 128);
    let at = words.number("at", read.end);
    let write = at..at + words.number("write", 128);

    let mut crc = Hasher::new();
    disk.transfer(Operation::Read, read.clone(), size, depth, |_, data| {
        crc.update(data)
    });
    say!(
        "blk read sectors={} crc32={:#010x}",
        read.end,
        crc.finalize()
    );

    if !write.is_empty() {
        let mut crc = Hasher::new();
        disk.transfer(
            Operation::Write,
            write.clone(),
            size,
            depth,
            |sector, data| {
                pattern::fill(seed, sector * SECTOR, data);
                crc.update(data);
            },
        );
        disk.flush();
        say!(
            "blk wrote sectors={} crc32={:#010x}",
            write.end - write.start,
            crc.finalize()
        );

        let mut crc = Hasher::new();
        disk.transfer(
            Operation::Read,
            write.clone(),
            size,
            depth,
            |sector, data| {
                let mut expected = vec![0; data.len()];
                pattern::fill(seed, sector * SECTOR, &mut expected);
                assert!(
                    data == expected,
                    "sector {sector} does not hold what was written"
                );
                crc.update(data);
            },
        );
        say!(
            "blk read-back sectors={} crc32={:#010x}",
            write.end - write.start,
            crc.finalize()
        );
    }
    say!("blk interrupts={}", disk.interrupts());
}

/// Writes and checks at random places, and reports its progress. Memory that no request names stays as it was.
pub(super) fn stress(words: &CommandLine, configuration: Configuration) {
    let mut disk = open(words, configuration);
    let rounds = words.number("n", 1000);
    let span = words.number("span", 2048);
    let depth = words.number("depth", DEPTH);
    let seed = words.number("seed", 1);
    let reports = words.number("reports", 10);
    let mut bystander = vec![0; BYSTANDER];
    pattern::fill(!seed, 0, &mut bystander);
    // What each block of 8 sectors holds: the seed of its pattern, once it has been written.
    const BLOCK: u64 = 8;
    let mut written: Vec<Option<u64>> = vec![None; (span / BLOCK) as usize];
    let blocks = written.len() as u64;
    for round in 0..rounds {
        let mut chosen: Vec<u64> = (0..depth)
            .map(|index| random(seed, round * depth + index) % blocks)
            .collect();
        chosen.sort_unstable();
        chosen.dedup();
        let mut requests: Vec<Request> = chosen
            .iter()
            .map(|block| Request::new(block * BLOCK, BLOCK))
            .collect();
        if random(!seed, round).is_multiple_of(2) {
            for (request, block) in requests.iter_mut().zip(&chosen) {
                let version = seed + round + 1;
                pattern::fill(version, request.sector * SECTOR, &mut request.data);
                written[*block as usize] = Some(version);
            }
            disk.run(Operation::Write, &mut requests);
        } else {
            disk.run(Operation::Read, &mut requests);
            for (request, block) in requests.iter().zip(&chosen) {
                let Some(version) = written[*block as usize] else {
                    continue;
                };
                let mut expected = vec![0; request.data.len()];
                pattern::fill(version, request.sector * SECTOR, &mut expected);
                assert!(
                    request.data == expected,
                    "sector {} does not hold what was written",
                    request.sector
                );
            }
        }
        if (round + 1) % (rounds / reports).max(1) == 0 {
            say!("blk-stress round={}", round + 1);
        }
    }
    disk.flush();
    let mut expected = vec![0; BYSTANDER];
    pattern::fill(!seed, 0, &mut expected);
    assert!(
        bystander == expected,
        "a device has written where it was not told to"
    );
    let mut crc = Hasher::new();
    disk.transfer(
        Operation::Read,
        0..blocks * BLOCK,
        BLOCK,
        depth as usize,
        |sector, data| {
            if let Some(version) = written[(sector / BLOCK) as usize] {
                let mut expected = vec![0; data.len()];
                pattern::fill(version, sector * SECTOR, &mut expected);
                assert!(
                    data == expected,
                    "sector {sector} does not hold what was written"
                );
            }
            crc.update(data);
        },
    );
    say!(
        "blk-stress sectors={} crc32={:#010x} interrupts={}",
        blocks * BLOCK,
        crc.finalize(),
        disk.interrupts()
    );
}

fn random(seed: u64, index: u64) -> u64 {
    u64::from_le_bytes(pattern::word(seed, index))
}

/// Requests with nothing else between them that would involve the monitor. The host and the guest tell each other by the
/// disk itself how far they are.
pub(super) fn idle_io(words: &CommandLine, configuration: Configuration) {
    let mut disk = open(words, configuration);
    let requests = words.number("n", 1000);
    let signal = words.number("signal", 0);
    let sectors = disk.sectors();
    say!("idle-io ready");
    while !disk.read_sector(signal).starts_with(b"go") {}
    let before = disk.interrupts();
    let mut crc = Hasher::new();
    for index in 0..requests {
        crc.update(&disk.read_sector((signal + 2 + index) % sectors));
    }
    let interrupts = disk.interrupts() - before;
    let mut done = [Request::new(signal + 1, 1)];
    done[0].data[..4].copy_from_slice(b"done");
    disk.run(Operation::Write, &mut done);
    while !disk.read_sector(signal).starts_with(b"end") {}
    say!(
        "idle-io requests={requests} interrupts={interrupts} crc32={:#010x}",
        crc.finalize()
    );
}

/// Interrupts that are masked wait, and arrive when they are not; those of another vector arrive there.
pub(super) fn msix(words: &CommandLine, configuration: Configuration) {
    let mut disk = open(words, configuration);
    let hold_back: [fn(&mut Disk, bool); 2] = [
        |disk, masked| disk.table().mask(0, masked),
        |disk, masked| disk.table().mask_all(masked),
    ];
    let mut pending = 0;
    for hold_back in hold_back {
        let mut requests = [Request::new(0, 1)];
        let before = disk.interrupts();
        hold_back(&mut disk, true);
        disk.submit_all(Operation::Read, &mut requests);
        disk.wait_for_completion();
        let since = ticks();
        while ticks() - since < A_WHILE {
            pending |= u64::from(disk.table().is_pending(0));
        }
        assert!(
            disk.interrupts() == before,
            "an interrupt that is masked has arrived"
        );
        hold_back(&mut disk, false);
        disk.complete_all(Operation::Read, &mut requests);
        assert!(
            disk.interrupts() == before + 1,
            "a held-back interrupt arrived more than once"
        );
    }
    disk.table().mask(0, true);
    disk.set_vector(OTHER_VECTOR);
    disk.table().mask(0, false);
    disk.read_sector(0);
    say!("blk-msix pending={pending} rerouted={}", disk.interrupts());
}
