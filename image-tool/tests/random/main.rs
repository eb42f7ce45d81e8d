//! Random images and operations through both tools. What either wrote is read, checked, converted, snapshotted,
//! rebased, committed, amended and resized by the other, and content and facts are compared. Every option of every
//! verb, as its own help lists them, is used.
//!
//! `IMAGE_TOOL_CASES` sets how many cases run (40), `IMAGE_TOOL_SEED` with which of them to begin (1). A failing case
//! prints its commands and the seed that repeats it alone.

#![allow(clippy::disallowed_macros, reason = "a test prints why it was skipped")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot be set up has failed"
)]

mod case;
mod changing;
mod copying;
mod differences;
mod images;
mod line;
mod numbers;
#[path = "../pair/mod.rs"]
mod pair;
mod reading;

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use case::Case;
use line::Options;
use pair::reference_is_there;

/// With so many cases every option must come up.
const ENOUGH: u64 = 1500;
/// After so many failures the rest is not tried.
const MOST_FAILURES: usize = 5;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

/// In memory, if a file there can be opened for direct I/O, as some cases want.
fn fastest_folder() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let probe = memory.join(format!("direct-{}", std::process::id()));
    let direct = std::fs::File::options()
        .write(true)
        .create_new(true)
        .custom_flags(0o40000)
        .open(&probe)
        .is_ok();
    let _ = std::fs::remove_file(&probe);
    if direct {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    }
}

fn run(seed: u64, folder: &Path, options: &Options) {
    let mut case = Case::new(seed, folder, options);
    case.chain();
    let theirs = case.pair.theirs();
    for _ in 0..4 {
        case.look(&theirs);
    }
    if !case.is_sound() {
        return;
    }
    case.pair.copy_theirs();
    case.operate();
    case.changed = true;
    if case.done {
        case.same_images();
    } else {
        case.whole_images();
    }
    // Both read what image-tool wrote.
    let ours = case.pair.ours();
    case.look(&ours);
}

#[test]
fn random_images_and_operations() {
    if !reference_is_there() {
        return;
    }
    let cases = number("IMAGE_TOOL_CASES", 40);
    let first = number("IMAGE_TOOL_SEED", 1);
    println!("{cases} cases from seed {first}");
    let (folder, options) = (fastest_folder(), Options::of_the_tool());
    let next = AtomicU64::new(first);
    let failed = Mutex::new(Vec::new());
    let work = || {
        while failed.lock().unwrap().len() < MOST_FAILURES {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + cases {
                break;
            }
            if std::panic::catch_unwind(|| run(seed, &folder, &options)).is_err() {
                eprintln!("repeat this case with IMAGE_TOOL_CASES=1 IMAGE_TOOL_SEED={seed}\n");
                failed.lock().unwrap().push(seed);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let (unused, used) = options.unused();
    println!("{}{used} options used, not {unused:?}", options.table());
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "failed with the seeds {failed:?}");
    assert!(
        cases < ENOUGH || unused.is_empty(),
        "never used: {unused:#?}"
    );
}
