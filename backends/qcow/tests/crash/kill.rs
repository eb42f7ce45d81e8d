//! Kills of a process that keeps a journal.

use qcow::Repair;

use crate::model::value_of;
use crate::peer::Rng;
use crate::peer::medium::SECTOR;
use crate::power::{Cuts, check, look_at_content, media};
use crate::workload::Workload;

impl Cuts {
    /// Kills after the operation that began at `start`, and within it.
    pub(crate) fn kill(&mut self, workload: &mut Workload, has_journal: bool, start: usize) {
        let end = workload.files[0].now();
        // A random stream of its own, so that the workload is the same without kills.
        let mut rng = Rng(workload.seed << 20 ^ end as u64);
        if !has_journal || rng.chance(40) {
            return;
        }
        let is_done = rng.chance(60) || start == end;
        let time = match is_done {
            true => end,
            false => start + rng.below((end - start) as u64) as usize,
        };
        let mut files = self.files_at(workload, time, &mut rng);
        self.killed += 1;
        let context = format!(
            "seed {}, kill {} at {time} of {start}..{end}",
            workload.seed, self.killed
        );
        let journal = media(&[files.pop().unwrap()]).remove(0);
        let left = media(&files);
        let there = (&left[..], Some(&journal));

        // A reader finds it; and so does whoever opens it for writing, and with it all is in the image.
        let reader = workload
            .open_with(there, false)
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        let mut disk = vec![0; reader.virtual_size() as usize];
        reader.read_at(0, &mut disk).unwrap();
        drop(reader);
        assert!(
            left[0].state().bytes == files[0],
            "{context}: a reader wrote"
        );
        let writer = workload
            .open_with(there, true)
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        let found = writer.check(Repair::None).unwrap();
        let bad = (found.corruptions, found.check_errors);
        assert_eq!(bad, (0, 0), "{context}: {:?}", found.messages);
        // Snapshots, sizes and the like change in several steps that the journal does not record.
        let leaks = found.leaks;
        assert!(!is_done || leaks == 0, "{context}: {:?}", found.messages);
        writer.close().unwrap();
        assert!(journal.state().bytes.is_empty());
        if is_done {
            for (sector, (found, done)) in disk.chunks(SECTOR).zip(&workload.model.now).enumerate()
            {
                let found = value_of(found);
                assert_eq!(found, Some(*done), "{context}: sector {sector}");
            }
        }
        let content = look_at_content(workload, &left, &context);
        assert!(content == disk, "{context}: the reader found another disk");
        assert_eq!(check(&left[0], &context), leaks, "{context}");
    }
}
