//! Writes the seed corpus: for each target, sound images with every feature of the format, some as their bytes, all as recipes
//! with and without patches, and over others; done to in every way the target has.
//!
//! `seeds FOLDER` makes `FOLDER/TARGET/NAME` for each.

// cargo-fuzz builds this program, too, with the same instrumentation, which calls libFuzzer.
use libfuzzer_sys as _;

use std::path::Path;

use bulkhead_fuzz::input::{MOST_STEPS, join, put_below};
use bulkhead_fuzz::{hostile, program, sound};

type Steps = Vec<[u8; 8]>;

/// The header says that there are no snapshots: all that is theirs alone is leaked.
const NO_SNAPSHOTS: [u8; 12] = [14, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// A check that repairs all it finds.
const REPAIR_ALL: [u8; 8] = [26, 2, 0, 0, 0, 0, 0, 0];
/// Longer images are recipes only: a fuzzer does little with them.
const LONGEST: usize = 24 << 10;
/// Definitions of guests with every key, in the forms that TOML has for it.
const DEFINITIONS: [(&str, &str); 4] = [
    ("least", "name='g'\nkernel='/k'\n"),
    (
        "tables",
        r#"# ours
name = "web" # its name
uuid = "6695eb01-f6a4-8304-79aa-97f2502e193f"
title = "T"
description = """D
E"""
cpus = 2
memory = 1073741824
kernel = "/k"
initramfs = '/i'
cmdline = "quiet \u0041"
serial = { file = "/log" }
autostart = true
on_poweroff = "preserve"
on_reboot = "restart"
on_crash = "destroy"

[[disks]]
path = "/d"
format = "qcow2"
readonly = false
serial = "s"
queues = 2
target = "vdb"
allow_path = ["/base"]

[[disks]]
path = "/e"
format = "raw"

[[nets]]
network = "default"
mac = "52:54:00:00:00:01"
queues = 4

[[nets]]
network = "lan"

[[vhost_user]]
type = 26
socket = "/s"
tag = "t"
queues = 3

[metadata]
"http://example.org/app" = "text"
other = "more"
"#,
    ),
    (
        "inline",
        "disks=[{path='/d',format='raw'},]\nname='g'\nnets=[{network='a'},{network='b',mac='52:54:00:00:00:01'}]\n\
         vhost_user=[{type='fs',socket='/s'}]\nserial='off'\nmemory='2M'\nkernel='/k'\nmetadata={u='t',\"v.w\"='x'}\n",
    ),
    (
        "dotted",
        "name='g'\r\nkernel='/k'\r\nserial.file='/l'\r\nmetadata.u='t'\r\nmetadata.'v w'='x'\r\nmemory='512M'\r\n",
    ),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).ok_or("usage: seeds FOLDER")?;
    let folder = Path::new(&folder);
    let images = sound::images();
    for (index, image) in (0..).zip(images) {
        let mut inputs = vec![
            ("recipe", hostile::recipe(index, &[])),
            ("patched", hostile::recipe(index, &patches())),
        ];
        if image.bytes.len() <= LONGEST {
            inputs.push(("bytes", image.bytes.clone()));
        }
        for (kind, input) in inputs {
            for (target, steps) in targets(index) {
                let name = format!("{}-{kind}", image.name);
                write(folder, target, &name, &join(&steps, &input))?;
            }
        }
        for way in 0..4 {
            let name = format!("{}-{way}", image.name);
            write(folder, "image_journal", &name, &journal(index, way))?;
        }
        if image.name.contains("backed") {
            for (target, steps) in targets(index) {
                let mut input = join(&steps, &hostile::recipe(index, &[]));
                // Another backed one, patched, and at the end of the chain one that is not.
                let below = [
                    hostile::recipe(index, &patches()),
                    hostile::recipe(index + 1, &[]),
                    hostile::recipe(0, &patches()),
                ];
                put_below(&mut input, &below);
                write(folder, target, &format!("{}-chain", image.name), &input)?;
            }
        }
        if image.name.contains("snapshots") {
            let leaks = hostile::recipe(index, &[NO_SNAPSHOTS]);
            for (target, mut steps) in targets(index) {
                if target == "image_write" {
                    steps[0] = REPAIR_ALL;
                }
                let name = format!("{}-leaks", image.name);
                write(folder, target, &name, &join(&steps, &leaks))?;
            }
        }
    }
    for (name, text) in DEFINITIONS {
        write(folder, "guest_definition", name, text.as_bytes())?;
    }
    Ok(())
}

/// What each target does to the image of this number.
fn targets(index: u8) -> [(&'static str, Steps); 5] {
    [
        ("image_open", ways_to_open(index)),
        ("image_read", looks(index)),
        ("image_check", Vec::new()),
        ("image_repair", after(repair(index), changes(index))),
        ("image_write", changes(index)),
    ]
}

/// Notes of each kind, forged or put over the journal's own, for a writer or a reader of the image of this number.
fn journal(index: u8, way: u8) -> Vec<u8> {
    // Seven records in the first part.
    let notes = (1..8).flat_map(|kind| [kind, 0, 0, 1, 0, 0, 0, 0].repeat(4));
    [index, way, 7 << 2].into_iter().chain(notes).collect()
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

fn after(first: [u8; 8], rest: Steps) -> Steps {
    let mut steps = vec![first];
    steps.extend(rest);
    steps.truncate(MOST_STEPS.into());
    steps
}

/// As many kinds of change as there is room for, in an order and at places of this seed's own.
fn changes(seed: u8) -> Steps {
    (0..MOST_STEPS)
        .map(|index| {
            let kind = index.wrapping_mul(7).wrapping_add(seed) % program::KINDS;
            let place = kind.wrapping_mul(8);
            [kind, 0x33 + index, kind, place, 0, 0, index, 2]
        })
        .collect()
}

/// Each kind of question at a few places.
fn looks(seed: u8) -> Steps {
    (0..24)
        .map(|index: u8| {
            let place = index.wrapping_mul(seed | 1);
            [
                index,
                0,
                place,
                index / 8,
                u8::from(index > 15),
                0,
                place,
                8,
            ]
        })
        .collect()
}

/// Some way to open an image, and questions.
fn ways_to_open(seed: u8) -> Steps {
    let way = [seed.wrapping_mul(37), seed, 0, 2, 0, 0, seed, 2];
    after(way, looks(seed).split_off(16))
}

/// Some way to repair an image.
fn repair(seed: u8) -> [u8; 8] {
    [0, seed, seed, 0, 0, 0, seed.wrapping_mul(11), 0]
}
