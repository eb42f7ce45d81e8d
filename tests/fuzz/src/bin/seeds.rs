//! Writes the seed corpus: for each target, sound images with every feature of the format, some as their bytes, all as recipes
//! with and without patches.
//!
//! `seeds FOLDER` makes `FOLDER/TARGET/NAME` for each.

// cargo-fuzz builds this program, too, with the same instrumentation, which calls libFuzzer.
use libfuzzer_sys as _;

use std::path::Path;

use bulkhead_fuzz::{hostile, program, sound};

const WHOLE: &[&str] = &["image_open", "image_check", "image_repair"];
const PROGRAMS: &[&str] = &["image_read", "image_write"];
/// The header says that there are no snapshots: all that is theirs alone is leaked.
const NO_SNAPSHOTS: [u8; 12] = [14, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// A check that repairs all it finds.
const REPAIR_ALL: [u8; 8] = [26, 2, 0, 0, 0, 0, 0, 0];
/// Longer images are recipes only: a fuzzer does little with them.
const LONGEST: usize = 24 << 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).ok_or("usage: seeds FOLDER")?;
    let folder = Path::new(&folder);
    for (index, image) in (0..).zip(sound::images()) {
        let mut inputs = vec![
            ("recipe", hostile::recipe(index, &[])),
            ("patched", hostile::recipe(index, &patches())),
        ];
        if image.bytes.len() <= LONGEST {
            inputs.push(("bytes", image.bytes.clone()));
        }
        for (kind, input) in inputs {
            let name = format!("{}-{kind}", image.name);
            for target in WHOLE {
                write(folder, target, &name, &input)?;
            }
            let input = program::join(&steps(index), &input);
            for target in PROGRAMS {
                write(folder, target, &name, &input)?;
            }
        }
        if image.name.contains("snapshots") {
            let mut steps = steps(index);
            steps[0] = REPAIR_ALL;
            let input = program::join(&steps, &hostile::recipe(index, &[NO_SNAPSHOTS]));
            write(
                folder,
                "image_write",
                &format!("{}-leaks", image.name),
                &input,
            )?;
        }
    }
    Ok(())
}

fn write(folder: &Path, target: &str, name: &str, content: &[u8]) -> std::io::Result<()> {
    let folder = folder.join(target);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(name), content)
}

/// A patch of each of a few kinds, at the end of what there is to patch: harm enough to try, little enough to open.
fn patches() -> [[u8; 12]; 3] {
    [
        [200, 0, 9, 0, 5, 0, 0, 0, 0, 0, 0, 0],
        [130, 0, 4, 63, 0, 0, 0, 0, 0, 0, 0, 0],
        [150, 0, 7, 0, 160, 0, 0, 0, 0, 0, 0, 0],
    ]
}

/// As many kinds of change as there is room for, in an order and at places of this seed's own.
fn steps(seed: u8) -> Vec<[u8; 8]> {
    (0..program::MOST_STEPS)
        .map(|index| {
            let kind = index.wrapping_mul(7).wrapping_add(seed) % program::KINDS;
            let place = kind.wrapping_mul(8);
            [kind, 0x33 + index, kind, place, 0, 0, index, 2]
        })
        .collect()
}
