//! Journals that are not what a killed process left, or not of the image they lie beside.

use qcow::{Format, OpenOptions, Repair, Storage};

use crate::files::*;
use crate::peer::Rng;
use crate::peer::medium::SECTOR;

#[test]
fn a_journal_is_not_believed_once_another_program_has_written_the_image() {
    let files = killed();
    // A program that does not know of journals clears what it does not know when it opens the image for writing.
    files.image.state().bytes[88..90].fill(0);
    assert!(session_in_header(&files) > 104);
    let ignoring = OpenOptions::new(Format::Qcow2).writable(true);
    let other = files.open_as(&ignoring).unwrap();
    other.write_at(1 << 19, &[8; 4096]).unwrap();
    other.close().unwrap();

    let image = files.open(1 << 20);
    is_sound(&image, "after another program");
    let disk = disk_of(&image);
    assert_eq!(disk[(1 << 19) / SECTOR], 0x0808_0808_0808_0808);
    assert_eq!(disk[0], 0);
    image.write_at(0, &[9; 512]).unwrap();
    image.close().unwrap();
}

#[test]
fn a_journal_of_another_session_or_image_is_none_and_without_its_own_the_image_is_an_error() {
    for (at, found) in [
        (DEVICE_AT, false),
        (BOOT_AT, false),
        (SESSION_AT, false),
        (63, true),
    ] {
        let files = killed();
        change_header(&files, at);
        for writable in [false, true] {
            let opened = files.open_as(&files.options().writable(writable));
            assert_eq!(opened.is_ok(), found, "byte {at}");
            if let Err(error) = opened {
                let said = error.to_string();
                assert!(said.contains("image-tool check -r all"), "{said}");
            }
        }
    }
    // The image that it is about is another one: this is a copy.
    let files = killed();
    let at = session_in_header(&files) + 31;
    files.image.state().bytes[at] ^= 1;
    let said = files.open_as(&files.options()).unwrap_err().to_string();
    assert!(said.contains("a copy of an image in use"), "{said}");
    // And none at all.
    let said = killed()
        .open_as(&OpenOptions::new(Format::Qcow2))
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("in the journal journal, which is not in the folder"),
        "{said}"
    );
}

#[test]
fn a_journal_of_another_start_of_the_host_is_not_waited_for() {
    for is_there in [true, false] {
        let files = killed();
        let at = session_in_header(&files) + 8;
        files.image.state().bytes[at] ^= 1;
        change_header(&files, BOOT_AT + 7);
        if !is_there {
            files.journal.state().bytes.clear();
        }
        let image = files.open(1 << 20);
        is_sound(&image, "without the journal");
        assert_eq!(disk_of(&image)[0], 0);
        image.close().unwrap();
    }
}

#[test]
fn a_check_reports_a_journal_that_is_not_to_be_had_and_its_repair_goes_on_without() {
    let lose = |files: &Files| files.journal.state().bytes.clear();
    let damage = |files: &Files| files.journal.state().bytes[4096 + 24] ^= 1;
    for change in [&lose as &dyn Fn(&Files), &damage] {
        let files = killed();
        change(&files);
        let before = files.image.state().bytes.clone();
        for repair in [Repair::None, Repair::Leaks] {
            let options = files
                .options()
                .writable(repair != Repair::None)
                .for_check(true);
            let image = files.open_as(&options).unwrap();
            let found = image.check(repair).unwrap();
            assert_eq!((found.corruptions, found.leaks_fixed), (1, 0));
            assert!(
                found.messages[0].contains("journal"),
                "{:?}",
                found.messages
            );
            image.close().unwrap();
            assert!(
                files.image.state().bytes == before,
                "it still waits for its journal"
            );
        }
        let options = files.options().writable(true).for_check(true);
        let image = files.open_as(&options).unwrap();
        let found = image.check(Repair::All).unwrap();
        assert_eq!((found.corruptions, found.corruptions_fixed), (0, 1));
        image.close().unwrap();
        let image = files.open(1 << 20);
        is_sound(&image, "repaired");
        assert_eq!(disk_of(&image)[0], 0);
    }
}

/// Where groups of notes begin, as their words have it.
fn groups_in(journal: &[u8]) -> Vec<usize> {
    let word = |at: usize| u64::from_le_bytes(journal[at..at + 8].try_into().unwrap());
    let mut groups = Vec::new();
    for part in (4096..journal.len()).step_by(PART) {
        let (mut at, epoch) = (part, word(part));
        while epoch != 0 && at + 32 <= part + PART && word(at) == epoch {
            groups.push(at);
            at += 32 * (1 + (word(at + 16) & 0x7fff) as usize);
        }
    }
    groups
}

#[test]
fn damage_within_a_journal_is_an_error_and_a_torn_end_is_none() {
    let files = Files::made(4);
    let image = files.open(1 << 20);
    for number in 1..18u64 {
        let offset = number * 37 % SECTORS as u64 * SECTOR as u64;
        image
            .write_at(offset, &number.to_le_bytes().repeat(64))
            .unwrap();
        image.secure().unwrap();
        // What the first of these parts has is needed no more.
        if number == 5 {
            image.flush().unwrap();
        }
    }
    std::mem::forget(image);
    let left = files.again();
    let journal = left.journal.state().bytes.clone();
    let groups = groups_in(&journal);
    let last = *groups.last().unwrap();
    let needed = groups.iter().position(|at| *at >= 4096 + PART).unwrap();
    assert!(groups.len() - needed >= 12);
    let mut disks = Vec::new();
    let end = |at: usize| at + 32 * (1 + (journal[at + 16] as usize));
    for (index, at) in groups.iter().enumerate() {
        let is_in_pages = at % 4096 == 0 || at / 4096 != (end(*at) - 1) / 4096;
        // A bit of each of its words, and all of it.
        for change in [0, 16, 20, 33, 99] {
            let files = left.again();
            {
                let bytes = &mut files.journal.state().bytes;
                match change {
                    99 => bytes[*at..at + 64].fill(0),
                    change => bytes[at + change] ^= 1,
                }
            }
            let when = format!("group {index}, change {change}");
            match files.open_as(&files.options()) {
                Ok(image) => {
                    // As if the last one had never been written, or not all of its pages.
                    let may_be_torn = *at == last && (is_in_pages || matches!(change, 16 | 99));
                    assert!(index < needed || may_be_torn, "{when}");
                    disks.push(disk_of(&image));
                }
                Err(error) => {
                    assert!(index >= needed, "{when}");
                    assert!(error.to_string().contains("journal is damaged"), "{error}");
                }
            }
        }
    }
    let all = disk_of(&left.open_as(&left.options()).unwrap());
    let lost = |disk: &Vec<u64>| disk.iter().zip(&all).filter(|(a, b)| a != b).count();
    assert!(disks.iter().all(|disk| lost(disk) <= 1));
    let whole = disks.iter().filter(|disk| lost(disk) == 0).count();
    assert!(whole >= 5 * needed, "a damaged group that is not needed");
}

#[test]
fn a_journal_of_which_something_is_missing_is_an_error_that_names_it() {
    let shorten = |len: usize| move |files: &Files| files.journal.state().bytes.truncate(len);
    let changes: [&dyn Fn(&Files); 4] = [
        &shorten(0),
        &shorten(4096),
        &shorten(4096 + 3 * PART),
        &|files| files.journal.state().bytes[20] ^= 1,
    ];
    for change in changes {
        let files = killed();
        let before = files.image.state().bytes.clone();
        change(&files);
        for writable in [false, true] {
            let error = files
                .open_as(&files.options().writable(writable))
                .unwrap_err();
            assert!(error.to_string().contains("journal is damaged"), "{error}");
        }
        assert!(files.image.state().bytes == before);
    }
}

/// Puts a group of records into the journal in place of what there is.
fn forge(files: &Files, records: &[[u64; 4]]) {
    let mut state = files.journal.state();
    let session = u64::from_le_bytes(state.bytes[32..40].try_into().unwrap());
    let place = records.len() as u64;
    let mut words = vec![1, 0, place, 0];
    words.extend(records.iter().flatten());
    let bytes =
        |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    words[3] = checksum(session, &bytes(&words));
    state.bytes[4096..].fill(0);
    let bytes = bytes(&words);
    state.bytes[4096..4096 + bytes.len()].copy_from_slice(&bytes);
    drop(state);
    set_progress(files, Some(1));
}

#[test]
fn records_that_do_not_fit_the_image_harm_nothing() {
    const L2: u64 = 2 << 8;
    const L1: u64 = 3 << 8;
    let files = killed();
    let image = files.open(1 << 20);
    image.write_at(64 << 10, &[5; 64 << 10]).unwrap();
    image.flush().unwrap();
    image.flush().unwrap();
    std::mem::forget(image);
    let sound = files.again();
    let disk = disk_of(&sound.open_as(&sound.options()).unwrap());
    let header = sound.image.state().bytes[..4096].to_vec();
    let l1 = u64::from_be_bytes(header[40..48].try_into().unwrap());
    let entry = {
        let bytes = &sound.image.state().bytes;
        u64::from_be_bytes(bytes[l1 as usize..][..8].try_into().unwrap())
    };
    let table = entry & 0x00ff_ffff_ffff_fe00;
    let cluster = 4096;
    let forgeries: Vec<Vec<[u64; 4]>> = vec![
        // The header given up; tables; all there is; what is in use.
        vec![[3, 0, 1, 1]],
        vec![[3, l1, 1, 1]],
        vec![[3, table, 1, 1]],
        vec![[3, cluster, u64::MAX, 1]],
        (1..40).map(|at| [3, at * cluster, 1, at]).collect(),
        // Words of the header, of the L1 table, of no table at all.
        vec![[1 | L2, 24, 0, u64::MAX]],
        vec![[1 | L1, l1, entry, cluster]],
        vec![[1 | L2, table, 0, 7 | 1 << 63]],
        vec![[1 | L2, !7, 0, 1]],
        vec![[1 | L2, 1 << 40, 0, 1]],
        // More memory than there should be.
        (1..1500u64)
            .map(|at| [2 | L2, (1 << 30) + at * cluster, cluster, 0])
            .collect(),
        vec![[2 | L2, 0, cluster, 0]],
        vec![[2 | L2, table, u64::MAX, 0]],
        // No kind of record, and a gap.
        vec![[9, 0, 0, 0]],
        vec![[5, 0, 0, 0], [1 | L2, 24, 0, 0]],
        vec![[4, 1, u64::MAX, 0], [3, cluster, 1, 1]],
    ];
    for (number, forgery) in forgeries.iter().enumerate() {
        for writable in [false, true] {
            let files = sound.again();
            forge(&files, forgery);
            let before = files.image.state().bytes.clone();
            match files.open_as(&files.options().writable(writable)) {
                Ok(image) => {
                    let found = image.check(Repair::None).unwrap();
                    assert_eq!(found.corruptions + found.check_errors, 0, "{number}");
                    assert!(disk_of(&image) == disk, "{number}");
                }
                Err(error) => {
                    assert!(error.to_string().contains("journal"), "{number}: {error}");
                    assert!(files.image.state().bytes == before, "{number}");
                }
            }
        }
    }
}

#[test]
fn random_records_do_no_more_than_leak() {
    let sound = killed();
    for seed in 0..300 {
        let mut rng = Rng(seed);
        let files = sound.again();
        let end = files.image.len().unwrap();
        let records: Vec<[u64; 4]> = (0..1 + rng.below(6))
            .map(|_| {
                let word = |rng: &mut Rng| match rng.below(4) {
                    0 => rng.below(8),
                    1 => rng.below(end / 512) * 512,
                    2 => rng.below(end) & !7,
                    _ => 1 << 63 | (rng.below(end / 4096) * 4096),
                };
                let kind = (1 + rng.below(5)) | rng.below(4) << 8;
                [kind, word(&mut rng), word(&mut rng), word(&mut rng)]
            })
            .collect();
        forge(&files, &records);
        if let Ok(image) = files.open_as(&files.options().writable(true)) {
            let found = image.check(Repair::None).unwrap();
            assert_eq!(
                found.corruptions + found.check_errors,
                0,
                "seed {seed}: {records:?}"
            );
        }
    }
}
