//! A process that is killed at any moment: whoever opens the image next finds all that was written, though it was never
//! flushed, and nothing leaks.

use crate::files::{Files, SECTORS, disk_of, holds, is_sound, write};
use crate::peer::Rng;
use crate::peer::medium::{Event, SECTOR};

#[test]
fn wherever_a_process_is_killed_the_next_one_finds_what_was_written_and_nothing_leaks() {
    for seed in 0..9 {
        let start = Files::made(seed);
        let files = start.again();
        let mut rng = Rng(seed);
        let image = files.open(*rng.pick(&[8 << 10, 1 << 20]));
        // Sometimes so much without a flush that parts of the journal are full.
        let (numbers, flushes) = if seed < 6 { (1..250, 10) } else { (1..700, 0) };
        let done = write((&image, &files), &mut rng, numbers, (60, flushes));
        // Killed: nothing is closed, nothing flushed.
        std::mem::forget(image);

        let mut rng = Rng(seed + 77);
        for _ in 0..25 {
            let moment = rng.below(files.now() as u64 + 1) as usize;
            let found = files.at_moment(&start, moment, &mut rng);
            let when = format!("seed {seed}, moment {moment}");
            let read_only = found.open_as(&found.options()).unwrap();
            is_sound(&read_only, &when);
            assert_eq!(found.now(), 0, "reading changes nothing");
            let disk = disk_of(&read_only);
            drop(read_only);
            holds(&disk, &done, moment, &when);
            let image = found.open(1 << 20);
            assert_eq!(disk_of(&image), disk, "{when}");
            is_sound(&image, &when);
            image.close().unwrap();
            assert!(found.journal.state().bytes.is_empty());
        }
    }
}

#[test]
fn processes_that_are_killed_one_after_the_other_lose_nothing_and_leak_nothing() {
    for seed in 0..20 {
        let mut rng = Rng(1000 + seed);
        let mut start = Files::made(seed);
        let mut expected = vec![vec![0]; SECTORS];
        for life in 0..8u64 {
            let files = start.again();
            let when = format!("seed {seed}, life {life}");
            let image = files.open(*rng.pick(&[8 << 10, 1 << 20]));
            let ready = files.now();
            // It writes what is unwritten, first of all.
            if rng.chance(50) {
                is_sound(&image, &when);
            }
            let disk = disk_of(&image);
            for (sector, (value, expected)) in disk.iter().zip(&expected).enumerate() {
                assert!(
                    expected.contains(value),
                    "{when}, sector {sector}: {value}, not {expected:?}"
                );
            }
            let first = 1 + 100 * life;
            let count = rng.below(12);
            let done = write((&image, &files), &mut rng, first..first + count, (50, 10));
            std::mem::forget(image);

            // At any moment, and often in the midst of taking over what the former process left.
            let moment = match rng.chance(40) {
                true => rng.below(ready as u64 + 1),
                false => rng.below(files.now() as u64 + 1),
            } as usize;
            if moment >= ready {
                expected = disk.into_iter().map(|value| vec![value]).collect();
            }
            for done in done.iter().filter(|done| done.begun <= moment) {
                for sector in &mut expected[done.sectors.clone()] {
                    if done.done <= moment {
                        sector.clear();
                    }
                    sector.push(done.value);
                }
            }
            start = files.at_moment(&start, moment, &mut rng);
        }
        let image = start.open(1 << 20);
        is_sound(&image, &format!("seed {seed}"));
        image.close().unwrap();
    }
}

#[test]
fn what_is_given_up_is_given_up_once_however_many_processes_are_killed() {
    let files = Files::made(3);
    let image = files.open(1 << 20);
    image.write_at(0, &[1; 4 << 10]).unwrap();
    image.flush().unwrap();
    image.flush().unwrap();
    image.write_zeroes(0, 4 << 10, true).unwrap();
    image.secure().unwrap();
    std::mem::forget(image);

    let left = files.again();
    let files = left.again();
    let image = files.open(1 << 20);
    // Where that was.
    image.write_at(1 << 19, &[2; 4 << 10]).unwrap();
    image.secure().unwrap();
    let written = files.now();
    image.flush().unwrap();
    image.flush().unwrap();
    std::mem::forget(image);

    let mut rng = Rng(1);
    for moment in 0..=files.now() {
        let found = files.at_moment(&left, moment, &mut rng);
        let image = found.open(1 << 20);
        is_sound(&image, &format!("{moment}"));
        let disk = disk_of(&image);
        assert_eq!(disk[0], 0, "{moment}");
        let last = disk[(1 << 19) / SECTOR];
        assert!(
            moment < written || last == 0x0202_0202_0202_0202,
            "{moment}"
        );
    }
}

#[test]
fn no_journal_is_relied_on_once_refcounts_may_be_stale() {
    let files = Files::made(7);
    let image = files.open(1 << 20);
    image.set_lazy_refcounts(true).unwrap();
    assert!(!image.has_journal());
    image.write_at(1 << 19, &[7; 4 << 10]).unwrap();
    image.secure().unwrap();
    std::mem::forget(image);

    let options = files.options().writable(true);
    let disk = disk_of(&files.open_as(&options).unwrap());
    assert_eq!(disk[(1 << 19) / SECTOR], 0x0707_0707_0707_0707);
}

#[test]
fn writes_that_allocate_wait_for_no_sync() {
    let files = Files::made(1);
    let image = files.open(1 << 20);
    let syncs = || {
        let is_sync = |event: &&Event| matches!(event, Event::Sync);
        files.image.state().log.iter().filter(is_sync).count()
    };
    let before = syncs();
    for cluster in 0..100 {
        image.write_at(cluster * 4096, &[7; 512]).unwrap();
        image.secure().unwrap();
        assert!(!image.is_ahead());
    }
    assert_eq!(syncs(), before);

    image.flush().unwrap();
    assert!(syncs() > before);
    let flushed = syncs();
    image.write_at(450 << 10, &[7; 512]).unwrap();
    image.flush().unwrap();
    // Refcounts, then the entries that use them.
    assert_eq!(syncs(), flushed + 2);
}

#[test]
fn a_journal_is_kept_when_refcounts_have_another_width() {
    let files = Files::made(1);
    let image = files.open(1 << 20);
    image.write_at(0, &[6; 4096]).unwrap();
    image.set_refcount_bits(32).unwrap();
    let syncs = || {
        let is_sync = |event: &&Event| matches!(event, Event::Sync);
        files.image.state().log.iter().filter(is_sync).count()
    };
    let before = syncs();
    image.write_at(64 << 10, &[7; 4096]).unwrap();
    image.secure().unwrap();
    assert_eq!(syncs(), before, "it is noted");
    std::mem::forget(image);
    let image = files.again().open(1 << 20);
    is_sound(&image, "with refcounts of 32 bits");
    let disk = disk_of(&image);
    assert_eq!(disk[0], 0x0606_0606_0606_0606);
    assert_eq!(disk[(64 << 10) / SECTOR], 0x0707_0707_0707_0707);
}

#[test]
fn what_a_snapshot_shares_is_given_up_once_however_many_processes_are_killed_while_they_take_over()
{
    for seed in 0..2 {
        let files = Files::made(seed);
        let image = files.open(1 << 20);
        image.write_at(0, &[1; 64 << 10]).unwrap();
        image.snapshot_create("s").unwrap();
        image.flush().unwrap();
        // The snapshot alone has the old clusters now.
        image.write_at(0, &[2; 64 << 10]).unwrap();
        image.secure().unwrap();
        std::mem::forget(image);

        let mut left = files.again();
        let mut rng = Rng(seed);
        for life in 0..2 {
            let next = left.again();
            let image = next.open(1 << 20);
            let ready = next.now();
            std::mem::forget(image);
            for moment in 0..=ready {
                let found = next.at_moment(&left, moment, &mut rng);
                let when = format!("seed {seed}, life {life}, moment {moment} of {ready}");
                let image = found
                    .open_as(&found.options().writable(true))
                    .unwrap_or_else(|error| panic!("{when}: {error}"));
                is_sound(&image, &when);
                assert_eq!(disk_of(&image)[0], 0x0202_0202_0202_0202, "{when}");
            }
            let moment = rng.below(ready as u64) as usize;
            left = next.at_moment(&left, moment, &mut rng);
        }
    }
}
