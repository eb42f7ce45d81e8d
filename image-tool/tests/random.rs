//! Random images and operations through both tools. What either wrote is read, checked, converted, snapshotted, rebased,
//! committed and resized by the other, and content and facts are compared.
//!
//! `IMAGE_TOOL_CASES` sets how many cases run (8), `IMAGE_TOOL_SEED` with which of them to begin. A failing case prints
//! the seed that repeats it alone.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fmt::Write as _;
use std::path::Path;

use pair::{Pair, must, reference_is_there};

/// Small, repeatable random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, limit: u64) -> bool {
        self.below(limit) == 0
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// One case: a folder with images, and the random numbers that decide what happens.
struct Case {
    pair: Pair,
    random: Random,
    /// Every command so far, for the report.
    log: String,
}

/// Sizes are multiples of 64 KiB up to this many.
const MAX_UNITS: u64 = 64;

impl Case {
    fn new(seed: u64) -> Self {
        Self {
            pair: Pair::new(),
            random: Random(seed),
            log: String::new(),
        }
    }

    fn size(&mut self) -> u64 {
        let size = (1 + self.random.below(MAX_UNITS)) * 65536;
        if self.random.one_in(4) {
            size - 512 * self.random.below(100)
        } else {
            size
        }
    }

    /// Makes an image by either tool, in qemu-img's folder.
    fn make(&mut self, args: &[&str]) {
        let by_us = self.random.one_in(2);
        let _ = writeln!(
            self.log,
            "{} {}",
            if by_us { "image-tool" } else { "qemu-img" },
            args.join(" ")
        );
        let outcome = if by_us {
            self.pair.run_ours_in(&self.pair.theirs(), args)
        } else {
            self.pair.run_theirs(args)
        };
        assert_eq!(outcome.status, Some(0), "{outcome:?}\n{}", self.log);
    }

    fn qcow2_options(&mut self) -> String {
        let random = &mut self.random;
        if random.one_in(6) {
            return format!("compat=0.10,cluster_size={}", 512u64 << random.below(9));
        }
        let extended = random.one_in(4);
        let mut options = if extended {
            format!(
                "extended_l2=on,cluster_size={}",
                16384u64 << random.below(5)
            )
        } else {
            format!("cluster_size={}", 512u64 << random.below(13))
        };
        if random.one_in(3) {
            let _ = write!(options, ",refcount_bits={}", 8u64 << random.below(4));
        }
        if random.one_in(4) {
            options.push_str(",lazy_refcounts=on");
        }
        if random.one_in(3) {
            options.push_str(",compression_type=zstd");
        }
        options
    }

    /// Writes, zeroes, discards and compressed writes by qemu-io.
    fn scribble(&mut self, image: &str, size: u64, cluster: u64) {
        let mut command = vec!["qemu-io".to_owned(), "-f".to_owned(), "qcow2".to_owned()];
        for _ in 0..1 + self.random.below(6) {
            let offset = self.random.below(size / 512) * 512;
            let len = (512 * (1 + self.random.below(400))).min(size - offset);
            let step = match self.random.below(6) {
                0 => format!("write -z {offset} {len}"),
                1 => format!("write -z -u {offset} {len}"),
                2 => format!("discard {offset} {len}"),
                3 if offset / cluster * cluster + cluster <= size => {
                    format!(
                        "write -c -P {} {} {cluster}",
                        self.random.below(256),
                        offset / cluster * cluster
                    )
                }
                _ => format!("write -P {} {offset} {len}", self.random.below(256)),
            };
            command.extend(["-c".to_owned(), step]);
        }
        command.push(image.to_owned());
        let _ = writeln!(self.log, "{}", command.join(" "));
        // A compressed write to a cluster that has data is refused; that is no matter here.
        std::process::Command::new(&command[0])
            .args(&command[1..])
            .current_dir(self.pair.theirs())
            .output()
            .unwrap();
    }

    /// An image, or an overlay on one.
    fn images(&mut self) -> u64 {
        let size = self.size();
        let options = self.qcow2_options();
        let cluster = cluster_of(&options);
        self.make(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &options,
            "base",
            &size.to_string(),
        ]);
        self.scribble("base", size, cluster);
        if self.random.one_in(3) {
            self.make(&["snapshot", "-c", "kept", "base"]);
            self.scribble("base", size, cluster);
        }
        let (options, size) = (self.qcow2_options(), self.size());
        let cluster = cluster_of(&options);
        self.make(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &options,
            "-b",
            "base",
            "-F",
            "qcow2",
            "top",
            &size.to_string(),
        ]);
        for _ in 0..2 {
            self.scribble("top", size, cluster);
            if self.random.one_in(3) {
                let name = format!("s{}", self.random.below(1000));
                self.make(&["snapshot", "-c", &name, "top"]);
            }
        }
        size
    }

    /// Both tools tell the same of every image, and find it consistent.
    fn facts(&mut self) {
        for image in ["base", "top"] {
            for args in [
                &["info", "--output=json", image][..],
                &["info", image],
                &["map", "--output=json", image],
                &["check", "--output=json", image],
                &["measure", "-O", "qcow2", "--output=json", image],
                &["compare", "base", image],
            ] {
                let (ours, theirs) = self.pair.read_both(args);
                assert_eq!(ours, theirs, "{args:?}\n{}", self.log);
            }
        }
    }

    /// Whether the reference has not damaged an image itself: it can, where compressed clusters meet snapshots.
    fn is_sound(&self) -> bool {
        ["base", "top"]
            .iter()
            .all(|image| self.pair.run_theirs(&["check", "-q", image]).status == Some(0))
    }

    /// One operation by each tool on its own copy; afterwards all images are the same.
    fn operate(&mut self, size: u64) {
        self.pair.copy_theirs();
        let other = self.size().to_string();
        let options = self.qcow2_options();
        let smaller = (size / 2 / 512 * 512).max(512).to_string();
        let operations: [&[&str]; 16] = [
            &["convert", "-O", "raw", "top", "new.raw"],
            &["convert", "-O", "qcow2", "-o", &options, "top", "new"],
            &["convert", "-O", "qcow2", "-c", "-o", &options, "top", "new"],
            &[
                "convert", "-W", "-m", "2", "-O", "qcow2", "-B", "base", "-F", "qcow2", "top",
                "new",
            ],
            &["convert", "-O", "qcow2", "-S", "64k", "base", "top", "new"],
            &["resize", "-q", "top", "+1M"],
            &["resize", "-q", "--shrink", "top", &smaller],
            &[
                "resize",
                "--preallocation=metadata",
                "--shrink",
                "top",
                &other,
            ],
            &["snapshot", "-c", "another", "top"],
            &["snapshot", "-a", "kept", "base"],
            &["snapshot", "-d", "kept", "base"],
            &["rebase", "-b", "", "top"],
            &["rebase", "-u", "-b", "base", "-F", "qcow2", "top"],
            &["commit", "top"],
            &["commit", "-d", "top"],
            &["dd", "-O", "qcow2", "bs=64k", "skip=1", "if=top", "of=new"],
        ];
        let args = self.random.pick(&operations);
        let _ = writeln!(self.log, "both: {}", args.join(" "));
        let (ours, theirs) = self.pair.run_both(args);
        // QEMU gives up where version 2 would need zeroes written; image-tool writes them.
        if theirs.stderr.contains("Operation not supported") && ours.status == Some(0) {
            return;
        }
        assert_eq!(ours, theirs, "{}", self.log);
        if theirs.status == Some(0) {
            for image in ["base", "top", "new"]
                .iter()
                .filter(|image| self.pair.theirs().join(image).exists())
            {
                self.same(image);
            }
            let raw = |side: &Path| std::fs::read(side.join("new.raw")).ok();
            assert!(
                raw(&self.pair.ours()) == raw(&self.pair.theirs()),
                "new.raw differs\n{}",
                self.log
            );
        }
    }

    fn same(&self, image: &str) {
        let ours = self.pair.ours().join(image);
        let theirs = self.pair.theirs().join(image);
        let compare = [
            "qemu-img",
            "compare",
            &ours.to_string_lossy(),
            &theirs.to_string_lossy(),
        ]
        .map(str::to_owned);
        let compared = std::panic::catch_unwind(|| must("compare", &self.pair.ours(), &compare));
        assert!(
            compared.is_ok_and(|text| text == "Images are identical.\n"),
            "{image} differs\n{}",
            self.log
        );
        for (side, tool) in [
            (self.pair.ours(), "qemu-img"),
            (self.pair.theirs(), env!("CARGO_BIN_EXE_image-tool")),
        ] {
            let output = std::process::Command::new(tool)
                .args(["check", "-q", image])
                .current_dir(side)
                .output()
                .unwrap();
            assert_eq!(
                output.status.code(),
                Some(0),
                "{tool} check {image}: {output:?}\n{}",
                self.log
            );
        }
    }
}

fn cluster_of(options: &str) -> u64 {
    let value = options.split("cluster_size=").nth(1).unwrap();
    value.split(',').next().unwrap().parse().unwrap()
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn random_images_and_operations() {
    if !reference_is_there() {
        return;
    }
    let cases = number("IMAGE_TOOL_CASES", 8);
    let first = number("IMAGE_TOOL_SEED", u64::from(std::process::id()) << 20);
    println!("{cases} cases from seed {first}");
    for seed in first..first + cases {
        let outcome = std::panic::catch_unwind(|| {
            let mut case = Case::new(seed);
            let size = case.images();
            case.facts();
            if case.is_sound() {
                case.operate(size);
            }
        });
        if let Err(panic) = outcome {
            eprintln!("repeat this case with IMAGE_TOOL_CASES=1 IMAGE_TOOL_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
