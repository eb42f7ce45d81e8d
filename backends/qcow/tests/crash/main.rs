//! What is on the medium after a power cut.
//!
//! A random workload runs on a medium that records every write and sync. Then the power fails, at many points of the
//! record: all before the last sync is on the medium; of what came after, any subset in any order, each write torn at
//! sector boundaries. Every such image must be consistent or leak clusters only (an image that is marked dirty: once it
//! is repaired), hold what was flushed, and in every sector written since, what was flushed or one of the values
//! written since. Snapshots taken must read as they were; a bitmap that says it is right must be; and the image must
//! serve another life of writes.
//!
//! Most images that can have a journal have one, which after a power cut counts for nothing, since the host has started
//! anew. After a kill of the process everything written so far is there, in the image and the journal: whoever opens
//! the image then finds all that was done, and nothing leaks.
//!
//! Each image is checked by this library and by `qemu-img check`.
//!
//! `QCOW_SEED` repeats a run; `QCOW_CRASH_POINTS` says how many points to look at, `QCOW_CRASH_QEMU` that of each
//! so-manieth of them qemu-img compares the content, too; `QCOW_CRASH_VERSION` that all images are of this version;
//! `QCOW_CRASH_TRACE` prints every operation.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kill;
mod model;
mod power;
mod reference;
mod regressions;
mod workload;
mod workload_of_format;

#[path = "../peer/mod.rs"]
mod peer;

use power::Cuts;
use workload::Workload;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// The version of all images, if it is always the same.
fn only_version() -> Option<u32> {
    std::env::var("QCOW_CRASH_VERSION")
        .ok()
        .map(|version| version.parse().expect("2 or 3"))
}

/// Points looked at unless the environment says otherwise: as many as take some seconds.
const DEFAULT_POINTS: usize = if cfg!(debug_assertions) {
    1_000
} else {
    10_000
};

/// Operations of one workload.
const STEPS: usize = 45;

/// Runs one workload, and cuts the power in it.
fn run(seed: u64, cuts: &mut Cuts) {
    let mut workload = Workload::new(seed);
    cuts.begin(&workload);
    let mut image = Some(workload.begin());
    for _ in 0..STEPS {
        let start = workload.files[0].now();
        let durable = workload.step(&mut image);
        let image = image.as_ref().unwrap();
        // The request is completed.
        image.secure().unwrap();
        cuts.kill(&mut workload, image.has_journal(), start);
        cuts.cut(&mut workload, start);
        workload.settle(durable);
    }
}

#[test]
fn after_a_crash_the_image_is_consistent_and_holds_what_was_flushed() {
    let first = number("QCOW_SEED", 1) as u64;
    let wanted = number("QCOW_CRASH_POINTS", DEFAULT_POINTS);
    let mut cuts = Cuts::new(number("QCOW_CRASH_QEMU", 50));
    for seed in first.. {
        if cuts.points >= wanted {
            break;
        }
        run(seed, &mut cuts);
    }
    cuts.reference.finish();
    println!("crash points from seed {first} on: {cuts}");
    assert!(cuts.points >= wanted && cuts.reference.asked == cuts.points);
    assert!(wanted < 1_000 || only_version() == Some(2) || cuts.killed > 0);
}
