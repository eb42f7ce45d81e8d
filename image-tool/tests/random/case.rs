//! One case: a folder with images, the random numbers that decide what happens, and what both tools make of it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use crate::differences;
use crate::images::Image;
use crate::line::{Line, Options};
use crate::numbers::Random;
use crate::pair::{Outcome, Pair, without_host_sizes};

/// A case in progress.
pub(crate) struct Case<'a> {
    pub(crate) pair: Pair,
    pub(crate) random: Random,
    pub(crate) options: &'a Options,
    /// From the lowest backing file up.
    pub(crate) chain: Vec<Image>,
    /// Whether both tools have done what they were to do last.
    pub(crate) done: bool,
    /// The disks may have another size than their snapshots.
    pub(crate) changed: bool,
    /// Every command so far, for the report.
    pub(crate) log: String,
}

impl<'a> Case<'a> {
    pub(crate) fn new(seed: u64, folder: &Path, options: &'a Options) -> Self {
        Self {
            pair: Pair::within(folder),
            random: Random(seed),
            options,
            chain: Vec::new(),
            done: false,
            changed: false,
            log: String::new(),
        }
    }

    fn note(&mut self, tool: &str, words: &[String]) {
        let quoted: Vec<String> = words
            .iter()
            .map(
                |word| match word.is_empty() || word.contains([' ', '{', '"', '*']) {
                    true => format!("'{word}'"),
                    false => word.clone(),
                },
            )
            .collect();
        let _ = writeln!(self.log, "{tool} {}", quoted.join(" "));
    }

    /// Does something by either tool, in qemu-img's folder. It must succeed.
    pub(crate) fn make(&mut self, words: &[String]) {
        let outcome = self.by_either(words);
        assert_eq!(outcome.status, Some(0), "{outcome:?}\n{}", self.log);
    }

    /// The same; whether it succeeded.
    pub(crate) fn attempt(&mut self, words: &[String]) -> bool {
        self.by_either(words).status == Some(0)
    }

    fn by_either(&mut self, words: &[String]) -> Outcome {
        let by_us = self.random.one_in(2);
        self.note(if by_us { "image-tool" } else { "qemu-img" }, words);
        let args: Vec<&str> = words.iter().map(String::as_str).collect();
        if by_us {
            self.pair.run_ours_in(&self.pair.theirs(), &args)
        } else {
            self.pair.run_theirs(&args)
        }
    }

    /// Runs something else in qemu-img's folder.
    pub(crate) fn run_there(&mut self, command: &[String]) {
        self.note("", command);
        let output = Command::new(&command[0])
            .args(&command[1..])
            .current_dir(self.pair.theirs())
            .output();
        output.unwrap();
    }

    /// Both tools read the same images and say the same.
    pub(crate) fn read_in(&mut self, folder: &Path, line: &Line<'_>) {
        let words = line.words(&mut self.random);
        self.note("both read:", &words);
        let args: Vec<&str> = words.iter().map(String::as_str).collect();
        let (ours, theirs) = self.pair.both_in(folder, &args);
        self.same_outcome(&words, ours, theirs);
    }

    /// Both do the same, each to its own copy.
    pub(crate) fn do_both(&mut self, line: &Line<'_>) {
        let words = line.words(&mut self.random);
        self.note("both:", &words);
        let args: Vec<&str> = words.iter().map(String::as_str).collect();
        let (ours, theirs) = self.pair.run_both(&args);
        self.done = (ours.status, theirs.status) == (Some(0), Some(0));
        self.same_outcome(&words, ours, theirs);
    }

    fn same_outcome(&self, words: &[String], ours: Outcome, theirs: Outcome) {
        let (ours, theirs) = (
            differences::normal(words, ours),
            differences::normal(words, theirs),
        );
        if differences::known(words, &ours, &theirs) {
            return;
        }
        assert!(
            ours == theirs,
            "image-tool: {ours:#?}\nqemu-img: {theirs:#?}\n{}",
            self.log
        );
    }

    /// What was refused, by one of them or by both, has left every image of image-tool's consistent.
    pub(crate) fn whole_images(&self) {
        for image in self.chain.iter().filter(|image| !image.raw) {
            self.run(
                "qemu-img",
                &self.pair.ours(),
                &["check", "-q", "-f", "qcow2", &image.name],
            );
        }
    }

    /// Every image in one folder is what it is in the other, and each tool finds what the other wrote consistent.
    pub(crate) fn same_images(&mut self) {
        let mut names: Vec<String> = std::fs::read_dir(self.pair.theirs())
            .unwrap()
            .chain(std::fs::read_dir(self.pair.ours()).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names.dedup();
        for name in names.iter().filter(|name| !name.ends_with(".data")) {
            self.same_image(name);
        }
    }

    fn same_image(&self, name: &str) {
        let (ours, theirs) = (self.pair.ours().join(name), self.pair.theirs().join(name));
        let read = |path: &Path| {
            std::fs::read(path)
                .unwrap_or_else(|error| panic!("{}: {error}\n{}", path.display(), self.log))
        };
        let (left, right) = (read(&ours), read(&theirs));
        if left == right {
            return;
        }
        if !left.starts_with(b"QFI\xfb") || !right.starts_with(b"QFI\xfb") {
            // With direct I/O qemu-img fills up the last block of a raw file.
            let tail = right.get(left.len()..).unwrap_or_default();
            let filled = tail.len() < 4096 && tail.iter().all(|byte| *byte == 0);
            assert!(
                filled && right.starts_with(&left),
                "{name} differs: {} and {} bytes\n{}",
                left.len(),
                right.len(),
                self.log
            );
            return;
        }
        let info = |folder: &Path| {
            let output = self.run("qemu-img", folder, &["info", "--output=json", name]);
            // qemu-img's `rebase` may leave a bitmap as if it were still in use.
            let lines = without_host_sizes(&output);
            let lines = lines.lines().filter(|line| !line.contains("\"in-use\""));
            lines.collect::<Vec<_>>().join("\n")
        };
        let (left, right) = (info(&self.pair.ours()), info(&self.pair.theirs()));
        assert!(
            left == right,
            "info of {name}: {left}\n{right}\n{}",
            self.log
        );
        let ours = ours.to_string_lossy();
        // From where it is, so that names of data files lead to its own.
        let raw = |folder: &Path| {
            self.run(
                "qemu-img",
                folder,
                &["convert", "-f", "qcow2", "-O", "raw", name, "../content"],
            );
            std::fs::read(folder.join("../content")).unwrap()
        };
        let (left, right) = (raw(&self.pair.ours()), raw(&self.pair.theirs()));
        assert!(left == right, "{ours} holds something else\n{}", self.log);
        self.run("qemu-img", &self.pair.ours(), &["check", "-q", name]);
        // What the reference leaks we are to find, as it does.
        let check = ["check", "--output=json", "-f", "qcow2", name];
        let (ours, theirs) = self.pair.both_in(&self.pair.theirs(), &check);
        assert!(ours == theirs, "{ours:#?}\n{theirs:#?}\n{}", self.log);
    }

    fn run(&self, tool: &str, folder: &Path, args: &[&str]) -> String {
        // What hangs is stopped, and ends with 124.
        let output = Command::new("timeout")
            .args(["--kill-after=1", "60", tool])
            .args(args)
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{tool} {args:?} in {}: {:?} {}{}\n{}",
            folder.display(),
            output.status.code(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Whether the reference has not damaged an image itself: it can, where compressed clusters meet snapshots.
    pub(crate) fn is_sound(&self) -> bool {
        self.chain.iter().filter(|image| !image.raw).all(|image| {
            self.pair
                .run_ours_in(&self.pair.theirs(), &["check", "-q", &image.name])
                .status
                == Some(0)
        })
    }

    /// Says which image a line is about: by its name, with or without a format, or by a list of options.
    pub(crate) fn target(&mut self, line: &mut Line<'_>, image: &Image) {
        let random = &mut self.random;
        let name = match random.below(6) {
            0 => {
                line.flag(random, "image-opts");
                format!(
                    "driver={},file.driver=file,file.filename={}",
                    image.format(),
                    image.name
                )
            }
            1 if !image.raw => image.name.clone(),
            2 => {
                line.value(random, "format", image.format());
                format!("file:{}", image.name)
            }
            _ => {
                line.value(random, "format", image.format());
                image.name.clone()
            }
        };
        line.operand(name);
        if self.random.one_in(30) && line.verb() != "bench" {
            line.value(&mut self.random, "object", "secret,id=sec0,data=letmein");
        }
    }
}
