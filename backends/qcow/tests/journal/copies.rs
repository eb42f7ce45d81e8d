//! Copies of an image in use, or of its journal, that are put in the place of what they were made of: either what is
//! there is the disk as it was then, or it is an error.

use qcow::{ErrorKind, Image, Preallocation, Repair};

use crate::files::*;
use crate::peer::Rng;
use crate::peer::medium::SECTOR;

/// The image that one process left, with the journal that another one did.
fn put_together(image: &Files, journal: &Files) -> Files {
    Files::new(
        image.image.state().bytes.clone(),
        journal.journal.state().bytes.clone(),
    )
}

/// Whoever opens it gets an error with these words, and changes nothing.
#[track_caller]
fn is_error(files: &Files, words: [&str; 2]) {
    let before = files.image.state().bytes.clone();
    for writable in [false, true] {
        let opened = files.open_as(&files.options().writable(writable));
        let said = opened.expect_err("it was opened").to_string();
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
    assert!(files.image.state().bytes == before);
}

/// The same, until a repair goes on without the journal.
#[track_caller]
fn is_refused(files: &Files, words: &str) {
    is_error(files, [words, "image-tool check -r all"]);
    let options = files.options().writable(true).for_check(true);
    let image = files.open_as(&options).unwrap();
    let found = image.check(Repair::All).unwrap();
    assert!(found.is_sound(), "{:?}", found.messages);
    image.close().unwrap();
    files.open(1 << 20).close().unwrap();
}

const COPY: &str = "a copy of an image in use";
const OLD_JOURNAL: &str = "a copy made before";

#[test]
fn whenever_a_copy_was_made_it_is_the_disk_as_it_was_then_or_an_error() {
    for seed in 0..3 {
        let start = Files::made(seed);
        let files = start.again();
        let image = files.open(*Rng(seed).pick(&[8 << 10, 1 << 20]));
        let ready = files.now();
        let done = write((&image, &files), &mut Rng(seed), 1..120, (60, 10));
        std::mem::forget(image);

        let mut rng = Rng(seed + 77);
        let (mut refused, mut opened) = (0, 0);
        for _ in 0..40 {
            let end = files.now() as u64 + 1;
            let moment = rng.below(end) as usize;
            // Often nothing but data was written in between.
            let other = match rng.chance(30) {
                true => rng.below(end) as usize,
                false => (moment + rng.below(8) as usize).min(files.now()),
            };
            let copy = files.at_moment(&start, moment, &mut rng);
            let other_left = files.at_moment(&start, other, &mut rng);
            let found = put_together(&copy, &other_left);
            let when = format!("seed {seed}, image of {moment}, journal of {other}");
            match found.open_as(&found.options()) {
                Ok(image) => {
                    opened += usize::from(moment > ready);
                    is_sound(&image, &when);
                    // A journal that lacks the last group alone is as if that had not been written any more.
                    let disk = disk_of(&image);
                    let last = done.iter().rfind(|done| done.done <= moment);
                    let begun = last.map_or(moment, |last| last.begun);
                    let least = if other < moment { begun } else { moment };
                    holds(&disk, &done, least, &when);
                }
                Err(error) => {
                    refused += 1;
                    // Before the first session there is no journal.
                    let words = match other {
                        _ if other > ready && moment > ready && other > moment => COPY,
                        _ if other > ready && moment > ready => OLD_JOURNAL,
                        _ => "image-tool check -r all",
                    };
                    assert!(error.to_string().contains(words), "{when}: {error}");
                }
            }
        }
        assert!(refused > 5 && opened > 3, "seed {seed}: {refused} {opened}");
    }
}

/// A served image, and a write that only its journal knows of.
fn served() -> (Files, Image) {
    let files = Files::made(2);
    let image = files.open(1 << 20);
    image.write_at(0, &[7; 4096]).unwrap();
    image.secure().unwrap();
    (files, image)
}

fn write_more(image: &Image) {
    image.write_at(64 << 10, &[8; 4096]).unwrap();
    image.secure().unwrap();
}

#[test]
fn a_copy_made_before_the_image_was_served_is_what_it_is() {
    let copy = Files::made(2);
    let files = copy.again();
    let image = files.open(1 << 20);
    write_more(&image);
    std::mem::forget(image);
    let found = put_together(&copy, &files);
    let image = found.open(1 << 20);
    is_sound(&image, "a copy");
    assert!(disk_of(&image).iter().all(|value| *value == 0));
}

#[test]
fn a_copy_since_which_nothing_was_noted_is_the_disk_as_it_was() {
    let (files, image) = served();
    let copy = files.again();
    // Into what is there: no table changes.
    image.write_at(0, &[9; 512]).unwrap();
    image.secure().unwrap();
    std::mem::forget(image);
    let found = put_together(&copy, &files);
    let image = found.open(1 << 20);
    is_sound(&image, "a copy");
    assert_eq!(disk_of(&image)[0], 0x0707_0707_0707_0707);
}

#[test]
fn a_copy_since_which_anything_was_noted_is_an_error_flushed_or_not() {
    for flushes in [0, 1, 2] {
        let (files, image) = served();
        let copy = files.again();
        write_more(&image);
        (0..flushes).for_each(|_| image.flush().unwrap());
        std::mem::forget(image);
        is_refused(&put_together(&copy, &files), COPY);
    }
}

#[test]
fn a_copy_of_the_first_sector_or_cluster_alone_is_an_error_or_changes_nothing() {
    let (files, image) = served();
    let copy = files.again();
    write_more(&image);
    std::mem::forget(image);
    let disk = {
        let found = files.again();
        let image = found.open_as(&found.options()).unwrap();
        disk_of(&image)
    };
    // What says how far the journal has got is at the end of the cluster, which is no smaller here.
    let mut found = files.again();
    let sector = copy.image.state().bytes[..SECTOR].to_vec();
    found.image.state().bytes[..SECTOR].copy_from_slice(&sector);
    let image = found.open_as(&found.options()).unwrap();
    assert!(disk_of(&image) == disk);
    drop(image);
    found = files.again();
    let cluster = copy.image.state().bytes[..4096].to_vec();
    found.image.state().bytes[..4096].copy_from_slice(&cluster);
    is_refused(&found, COPY);
    // Nor may it be missing.
    found = files.again();
    set_progress(&found, None);
    is_refused(&found, COPY);
}

#[test]
fn a_copy_made_while_a_process_takes_over_is_no_other_than_the_image() {
    let (files, image) = served();
    write_more(&image);
    std::mem::forget(image);
    let left = files.again();
    let next = left.again();
    // Killed while it takes over, at each moment; then a copy of that is put back.
    let image = next.open(1 << 20);
    let ready = next.now();
    write_more(&image);
    std::mem::forget(image);
    let mut rng = Rng(5);
    for moment in 0..ready {
        let copy = next.at_moment(&left, moment, &mut rng);
        for other in [moment, moment + 1, ready - 1, ready] {
            let found = put_together(&copy, &next.at_moment(&left, other, &mut rng));
            match found.open_as(&found.options()) {
                Ok(image) => {
                    is_sound(&image, &format!("{moment}, {other}"));
                    let disk = disk_of(&image);
                    assert_eq!(disk[0], 0x0707_0707_0707_0707, "{moment}, {other}");
                    assert_eq!(disk[128], 0x0808_0808_0808_0808, "{moment}, {other}");
                }
                Err(error) => {
                    assert!(other > moment, "{moment}: {error}");
                }
            }
        }
    }
}

#[test]
fn a_copy_of_the_journal_that_has_not_all_is_an_error() {
    let (files, image) = served();
    let copy = files.again();
    write_more(&image);
    image.write_at(256 << 10, &[8; 4096]).unwrap();
    image.secure().unwrap();
    std::mem::forget(image);
    is_refused(&put_together(&files, &copy), OLD_JOURNAL);
}

#[test]
fn a_journal_of_the_former_version_is_taken_over_and_one_of_a_later_version_is_an_error() {
    let (files, image) = served();
    std::mem::forget(image);
    set_progress(&files, None);
    set_version(&files, 4);
    let disk = disk_of(&files.open_as(&files.options()).unwrap());
    assert_eq!(disk[0], 0x0707_0707_0707_0707);
    let image = files.open(1 << 20);
    assert!(disk_of(&image) == disk);
    is_sound(&image, "taken over");
    write_more(&image);
    std::mem::forget(image);
    // The next one is of this version.
    let copy = files.again();
    set_progress(&files, None);
    is_refused(&files, COPY);
    set_version(&copy, 6);
    is_refused(&copy, "image-tool check -r all");
}

#[test]
fn the_end_of_the_first_cluster_is_as_it_was_once_the_image_is_closed() {
    for seed in 0..3 {
        let files = Files::made(seed);
        let before = files.image.state().bytes.clone();
        let image = files.open(1 << 20);
        let at = progress_at(&files);
        assert_ne!(files.image.state().bytes[at..at + 32], [0; 32]);
        write_more(&image);
        image.close().unwrap();
        assert!(files.image.state().bytes[..at + 32] == before[..at + 32]);

        // Whatever somebody else has put there, stays.
        files.image.state().bytes[at + 31] = 1;
        let options = files.options().writable(true);
        let image = files.open_as(&options).unwrap();
        assert!(!image.has_journal());
        image.write_at(128 << 10, &[8; 4096]).unwrap();
        image.close().unwrap();
        assert_eq!(files.image.state().bytes[at + 31], 1);
    }
}

#[test]
fn what_is_cut_off_while_the_image_is_in_use_is_an_error_for_the_next_process() {
    let (files, image) = served();
    write_more(&image);
    image.flush().unwrap();
    image.flush().unwrap();
    std::mem::forget(image);
    let len = files.image.state().bytes.len();
    for left in [len - 512, len - 4096] {
        let found = files.again();
        found.image.state().bytes.truncate(left);
        let lengths = format!("of {len} bytes, {left} are left");
        is_error(&found, [&lengths, &format!("truncate -s {len}")]);
        found.image.state().bytes.resize(len, 0);
        let image = found.open(1 << 20);
        assert_eq!(disk_of(&image)[0], 0x0707_0707_0707_0707);
    }
    // Longer is no loss.
    files.image.state().bytes.resize(len + 4096, 0);
    let image = files.open(1 << 20);
    assert_eq!(disk_of(&image)[128], 0x0808_0808_0808_0808);
}

#[test]
fn a_repair_does_not_give_up_what_an_image_would_have_that_is_made_as_long_again() {
    let (files, image) = served();
    write_more(&image);
    std::mem::forget(image);
    let len = files.image.state().bytes.len();
    files.image.state().bytes.truncate(len - 4096);
    let lengths = format!("of {len} bytes, {} are left", len - 4096);
    let for_check = files.options().writable(true).for_check(true);

    let before = files.again();
    let image = files.open_as(&for_check).unwrap();
    for repair in [Repair::None, Repair::Leaks] {
        let found = image.check(repair).unwrap();
        assert!(found.messages[0].contains(&lengths), "{found:?}");
        assert!(!found.is_sound());
    }
    let refused = image.check(Repair::All).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Shortened, "{refused}");
    for words in [&lengths, &format!("truncate -s {len}"), "remove journal"] {
        assert!(refused.to_string().contains(words), "{refused}");
    }
    drop(image);
    assert!(files.image.state().bytes == before.image.state().bytes);
    assert!(files.journal.state().bytes == before.journal.state().bytes);

    // As long again, it has all that was noted.
    let longer = files.again();
    longer.image.state().bytes.resize(len, 0);
    let image = longer.open(1 << 20);
    assert_eq!(disk_of(&image)[0], 0x0707_0707_0707_0707);
    image.close().unwrap();

    // Without the journal, the user does without both.
    files.journal.state().bytes.clear();
    let image = files.open_as(&for_check).unwrap();
    let found = image.check(Repair::All).unwrap();
    assert!(found.is_sound(), "{found:?}");
    image.close().unwrap();
    files.open(1 << 20).close().unwrap();
}

#[test]
fn an_image_that_its_own_process_makes_smaller_is_whole() {
    let start = Files::made(2);
    let files = start.again();
    let image = files.open(1 << 20);
    image.write_at(768 << 10, &[6; 128 << 10]).unwrap();
    image.write_at(0, &[7; 4096]).unwrap();
    image.secure().unwrap();
    let before = files.now();
    image.resize(512 << 10, Preallocation::Off).unwrap();
    std::mem::forget(image);
    let mut rng = Rng(3);
    for moment in before..=files.now() {
        let found = files.at_moment(&start, moment, &mut rng);
        let image = found.open_as(&found.options().writable(true)).unwrap();
        let mut data = [0; 4096];
        image.read_at(0, &mut data).unwrap();
        assert_eq!(data, [7; 4096], "{moment}");
    }
}
