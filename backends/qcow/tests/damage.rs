//! Damaged images: what a check finds and what a repair makes of it, here and in qemu-img.
//!
//! Sound images get a few of their metadata words overwritten. Then both tools check a copy and repair one, with `-r
//! leaks` and with `-r all`: exit status, every count of the JSON output, and the verdict of both tools on what either
//! repaired must agree, and what the repaired image holds must be what the other's holds. Intended differences,
//! which [`differs_knowingly`] recognizes:
//!
//! * a refcount table that the header places where none can be: qemu-img does not open the image; here it is counted,
//!   and gets a new table;
//! * a refcount block that is not aligned: qemu-img's repair succeeds and says that it failed ("No medium found");
//! * one whose entry has reserved bits: qemu-img gives up when it is about to overwrite what that led to; here it is
//!   left alone until there is a new table;
//! * one far beyond the end of the file: qemu-img makes the file that long, here it is rebuilt;
//! * an L1 table or a snapshot table at offset 0 is one for qemu-img; the offset of the latter matters to it even if
//!   there are no snapshots, and too many of them are forgotten by it if there are bitmaps;
//! * a repair that qemu-img gives up half-way;
//! * L2 entries with reserved bits, or that lead into the middle of a cluster: qemu-img counts them and leaves them;
//!   here they are mended;
//! * a flag that says a compressed cluster is not shared: counted by both, taken away by our repair alone;
//! * snapshots beside bitmaps: whatever qemu-img repairs, it loses all snapshots, so no image here has both;
//! * where qemu-img crashes or runs into an assertion, nothing is compared.
//!
//! `QCOW_DAMAGE_SEED` begins with another case, `QCOW_DAMAGE_CASES` says how many there are, `QCOW_DAMAGE_KEEP` where
//! to keep those that fail.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod peer;

use std::path::Path;

use peer::{Rng, run, text};
use qcow::{CheckResult, CompressionType, CreateOptions, Format, Image, OpenOptions, Repair};

const COUNTS: [&str; 10] = [
    "check-errors",
    "corruptions",
    "leaks",
    "corruptions-fixed",
    "leaks-fixed",
    "image-end-offset",
    "total-clusters",
    "allocated-clusters",
    "fragmented-clusters",
    "compressed-clusters",
];

/// What a tool says of an image: its exit status, and the counts if it came that far.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Verdict {
    status: i32,
    counts: Option<Vec<u64>>,
}

/// The kinds of image that are damaged.
fn image(path: &Path, kind: u64) {
    let mut rng = Rng(kind);
    let (cluster_size, size) = match kind % 4 {
        0 => (512, 300 << 10),
        1 => (4096, 2 << 20),
        2 => (16 << 10, 4 << 20),
        _ => (64 << 10, 8 << 20),
    };
    let version = if kind % 5 == 4 { 2 } else { 3 };
    let options = CreateOptions {
        cluster_size,
        version,
        extended_l2: version == 3 && kind % 4 == 2,
        refcount_bits: if version == 3 {
            *rng.pick(&[1, 8, 16, 16, 64])
        } else {
            16
        },
        compression_type: CompressionType::Zlib,
        ..CreateOptions::new(Format::Qcow2, size)
    };
    qcow::create(path, &options).unwrap();
    let image = Image::open(path, &OpenOptions::new(Format::Qcow2).writable(true)).unwrap();
    for turn in 0..24u64 {
        let offset = rng.below(size) / cluster_size * cluster_size;
        let len = ((rng.below(4) + 1) * cluster_size).min(size - offset);
        let data = vec![turn as u8 + 1; len as usize];
        match rng.below(10) {
            0..3 => image.write_compressed(offset, &data).unwrap(),
            3 => image.write_zeroes(offset, len, rng.chance(50)).unwrap(),
            _ => image.write_at(offset, &data).unwrap(),
        }
        let snapshots = options.refcount_bits > 1 && !kind.is_multiple_of(3);
        match turn {
            8 if snapshots => image.snapshot_create("one").unwrap(),
            16 if snapshots => image.snapshot_create("two").unwrap(),
            16 if version == 3 => image.bitmap_add("bits", Some(64 << 10), true).unwrap(),
            _ => {}
        }
    }
    image.close().unwrap();
}

/// The image as bytes, with the places of its tables.
struct Patient {
    bytes: Vec<u8>,
}

impl Patient {
    fn word(&self, at: u64) -> u64 {
        let at = at as usize;
        let bytes = self.bytes.get(at..at + 8).unwrap_or(&[0; 8]);
        u64::from_be_bytes(bytes.try_into().unwrap())
    }

    fn half(&self, at: u64) -> u64 {
        self.word(at) >> 32
    }

    fn set(&mut self, at: u64, word: u64) {
        if let Some(place) = self.bytes.get_mut(at as usize..at as usize + 8) {
            place.copy_from_slice(&word.to_be_bytes());
        }
    }

    fn cluster(&self) -> u64 {
        1 << self.half(20).clamp(9, 21)
    }

    /// A word of a table at `table` with `entries` entries: one that is in use, mostly.
    fn pick(&self, rng: &mut Rng, table: u64, entries: u64) -> u64 {
        let used: Vec<u64> = (0..entries.max(1))
            .map(|index| table + index * 8)
            .filter(|at| self.word(*at) != 0)
            .collect();
        if used.is_empty() || rng.chance(15) {
            table + rng.below(entries.max(1)) * 8
        } else {
            *rng.pick(&used)
        }
    }

    fn l2(&self, rng: &mut Rng) -> u64 {
        let l1 = self.pick(rng, self.word(40), self.half(36));
        let table = self.word(l1) & 0x00ff_ffff_ffff_fe00;
        self.pick(rng, table, self.cluster() / 8)
    }

    fn spoil(&self, rng: &mut Rng, word: u64) -> u64 {
        let cluster = self.cluster();
        let end = self.bytes.len() as u64;
        match rng.below(10) {
            0 => word ^ 1 << rng.below(64),
            1 => word ^ 1 << 63,
            2 => word ^ 512,
            3 => 0,
            4 => word | 1,
            5 => (word & 1 << 63) | (rng.below(end) / cluster * cluster),
            6 => (word & 1 << 63) | ((end / cluster + rng.below(4)) * cluster),
            7 => (word & 1 << 63) | 1 << (40 + rng.below(15)),
            8 => word.wrapping_add(cluster),
            _ => rng.next(),
        }
    }

    /// Overwrites something; returns what.
    fn damage(&mut self, rng: &mut Rng) -> String {
        let refcount_table = self.word(48);
        let (what, at) = match rng.below(100) {
            0..12 => ("L1", self.pick(rng, self.word(40), self.half(36))),
            12..40 => ("L2", self.l2(rng)),
            40..52 => (
                "refcount table",
                self.pick(rng, refcount_table, self.cluster() / 8),
            ),
            52..78 => {
                let block = self.word(self.pick(rng, refcount_table, 1));
                ("refcount block", self.pick(rng, block, self.cluster() / 8))
            }
            78..86 if self.half(60) > 0 => ("snapshot table", self.word(64) + rng.below(16) * 8),
            86..94 if self.half(60) > 0 => {
                let l1 = self.word(self.word(64));
                ("snapshot's L1", self.pick(rng, l1, self.half(36)))
            }
            _ => ("header", *rng.pick(&[24, 36, 40, 48, 56, 60, 64])),
        };
        let what = match at {
            // Where something else is, its entries are whatever that is.
            60 | 64 => "snapshots' place",
            _ => what,
        };
        let old = self.word(at);
        let new = self.spoil(rng, old);
        self.set(at, new);
        format!("{what} at {at:#x}: {old:#x} -> {new:#x}")
    }
}

fn theirs(path: &Path, repair: Repair) -> Verdict {
    let mut args = vec!["check", "--output=json", "-f", "qcow2"];
    match repair {
        Repair::None => {}
        Repair::Leaks => args.extend(["-r", "leaks"]),
        Repair::All => args.extend(["-r", "all"]),
    }
    args.push(text(path));
    let output = run("timeout", &[&["60", "qemu-img"], &args[..]].concat());
    let json = String::from_utf8_lossy(&output.stdout);
    Verdict {
        // A signal is none of its own verdicts.
        status: output.status.code().unwrap_or(-1),
        counts: json
            .contains("check-errors")
            .then(|| COUNTS.map(|name| field(&json, name)).to_vec()),
    }
}

/// A number of the JSON output; those that are 0 are not in it.
fn field(json: &str, name: &str) -> u64 {
    let key = format!("\"{name}\": ");
    json.find(&key).map_or(0, |at| {
        let digits = json[at + key.len()..].split(|c: char| !c.is_ascii_digit());
        digits.clone().next().unwrap().parse().unwrap()
    })
}

/// As image-tool does it: a second check after a repair that did something.
fn ours(path: &Path, repair: Repair) -> (Verdict, Vec<String>) {
    let failed = |messages| {
        let verdict = Verdict {
            status: 1,
            counts: None,
        };
        (verdict, messages)
    };
    let options = OpenOptions::new(Format::Qcow2)
        .for_check(true)
        .writable(repair != Repair::None);
    let image = match Image::open(path, &options) {
        Ok(image) => image,
        Err(error) => return failed(vec![error.to_string()]),
    };
    let first = match image.check(repair) {
        Ok(first) => first,
        Err(error) => return failed(vec![error.to_string()]),
    };
    if let Some(why) = first.unfinished {
        return failed([first.messages, vec![why]].concat());
    }
    let mut result = first.clone();
    if first.corruptions_fixed + first.leaks_fixed > 0 {
        result = image.check(Repair::None).unwrap();
        result.corruptions_fixed = first.corruptions_fixed;
        result.leaks_fixed = first.leaks_fixed;
        result.messages = [first.messages, result.messages].concat();
    }
    image.close().unwrap();
    let verdict = Verdict {
        status: match &result {
            CheckResult {
                check_errors: 1.., ..
            } => 1,
            CheckResult {
                corruptions: 1.., ..
            } => 2,
            CheckResult { leaks: 1.., .. } => 3,
            _ => 0,
        },
        counts: Some(vec![
            result.check_errors,
            result.corruptions,
            result.leaks,
            result.corruptions_fixed,
            result.leaks_fixed,
            result.image_end_offset,
            result.total_clusters,
            result.allocated_clusters,
            result.fragmented_clusters,
            result.compressed_clusters,
        ]),
    };
    (verdict, result.messages)
}

/// What is known to be done better, or cannot be compared.
fn differs_knowingly(
    patient: &Patient,
    verdict: &Verdict,
    repair: Repair,
    messages: &[String],
    damages: &[String],
) -> bool {
    let table_clusters = patient.half(56);
    let table_place = patient.word(48);
    let largest = (8 << 20) / patient.cluster();
    let place_is_wrong = table_place == 0
        || !table_place.is_multiple_of(patient.cluster())
        || table_place >> 56 != 0
        || table_clusters > largest.max(1);
    let unaligned_block = messages.iter().any(|message| message.contains("unaligned"));
    let compressed_flag = messages
        .iter()
        .any(|message| message.contains("copied flag must never"));
    // Killed, or out of time.
    let crashed = matches!(verdict.status, -1 | 124 | 134 | 139);
    let reported = |what: &str| messages.iter().any(|message| message.contains(what));
    let reserved_bits = reported("ERROR refcount table entry") && reported("Rebuilding");
    let mended = reported("Repairing L2 entry");
    let grows = reported("ERROR could not resize image");
    let (snapshots, table) = (patient.half(60), patient.word(64));
    let snapshots_nowhere = match snapshots {
        0 => table != 0,
        count => table == 0 || count > 65536,
    };
    let errors = verdict.counts.as_ref().is_none_or(|counts| counts[0] > 0);
    let gives_up = repair != Repair::None && errors;
    // An L1 table that reaches into the header: opened for a repair, qemu-img first changes that.
    let long_l1 = repair != Repair::None && patient.half(36) > 64;
    place_is_wrong
        || unaligned_block
        || compressed_flag
        || crashed
        || reserved_bits
        || mended
        || grows
        || snapshots_nowhere
        || gives_up
        || long_l1
        || (repair == Repair::All && damages.iter().any(|what| what.contains("snapshots' place")))
        || patient.word(40) == 0
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[test]
fn damage_is_found_and_repaired_as_qemu_does() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let (first, cases) = (
        number("QCOW_DAMAGE_SEED", 0),
        number("QCOW_DAMAGE_CASES", 200),
    );
    let (mut compared, mut known, mut wrong) = (0, 0, 0);
    for seed in first..first + cases {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9));
        let original = file("original");
        image(&original, seed % 20);
        let mut patient = Patient {
            bytes: std::fs::read(&original).unwrap(),
        };
        let damages: Vec<String> = (0..=rng.below(3))
            .map(|_| patient.damage(&mut rng))
            .collect();
        let repair = *rng.pick(&[Repair::None, Repair::Leaks, Repair::All, Repair::All]);
        let (a, b) = (file("ours"), file("theirs"));
        std::fs::write(&a, &patient.bytes).unwrap();
        std::fs::write(&b, &patient.bytes).unwrap();
        let (mine, messages) = ours(&a, repair);
        let peer = theirs(&b, repair);
        if differs_knowingly(&patient, &peer, repair, &messages, &damages) {
            known += 1;
            continue;
        }
        compared += 1;
        let context = format!(
            "case {seed}, {repair:?}, {damages:#?}\nours {mine:?}\ntheirs {peer:?}\n{:#?}",
            &messages[..messages.len().min(30)]
        );
        let mut sound = mine == peer;
        if repair == Repair::All {
            // Whoever repaired it, both say the same of it then, and find the same in it.
            let verdicts = [&a, &b].map(|path| {
                (
                    ours(path, Repair::None).0.status,
                    theirs(path, Repair::None).status,
                )
            });
            let (mended, left) = (verdicts[0], verdicts[1]);
            if sound && mended == (0, 0) && left.0 != 0 && left.0 == left.1 {
                // Its repair leaves something that both find, as soon as it has closed the image; ours does not.
                (compared, known) = (compared - 1, known + 1);
                continue;
            }
            sound &= mended == left && mended.0 == mended.1;
            if verdicts[0] == (0, 0) {
                let args = [
                    "compare",
                    "-q",
                    "-f",
                    "qcow2",
                    "-F",
                    "qcow2",
                    text(&a),
                    text(&b),
                ];
                // More than 1: what is there cannot be read, by either.
                sound &= run("qemu-img", &args).status.code() != Some(1);
            }
            if !sound {
                println!("after the repair: {verdicts:?}");
            }
        }
        if !sound {
            if let Some(keep) = std::env::var_os("QCOW_DAMAGE_KEEP") {
                let kept = std::path::PathBuf::from(keep).join(format!("{seed}.qcow2"));
                std::fs::write(kept, &patient.bytes).unwrap();
            }
            wrong += 1;
            println!("{context}");
        }
    }
    println!("{compared} cases compared, {known} that differ knowingly");
    assert_eq!(wrong, 0, "of {compared}");
    assert!(compared > known);
}
