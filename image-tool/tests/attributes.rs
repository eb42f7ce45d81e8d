//! What file systems know of files beside their content, on real btrfs and XFS: copy-on-write, extent size hints,
//! shared extents. Against qemu-img.

#![allow(clippy::disallowed_macros, reason = "a test prints why it was skipped")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pair::{Outcome, must, reference_is_there};
use tempfile::TempDir;

const TOOL: &str = env!("CARGO_BIN_EXE_image-tool");

/// A file system of this type in a file, mounted until this is dropped.
struct Mounted {
    root: TempDir,
}

impl Mounted {
    /// `None` where that cannot be had.
    fn new(kind: &str) -> Option<Self> {
        if !reference_is_there() {
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        let line = format!(
            "truncate -s 600M medium && mkfs.{kind} -q medium >/dev/null && mkdir at && mount -o loop medium at && \
             ln -s {TOOL} qemu-img"
        );
        let made = run(Command::new("sh").args(["-ec", &line]), root.path());
        if made.status != Some(0) {
            eprintln!("skipped: no {kind} can be mounted here: {made:?}");
            return None;
        }
        Some(Self { root })
    }

    fn at(&self) -> PathBuf {
        self.root.path().join("at")
    }

    fn shell(&self, line: &str) -> Outcome {
        run(Command::new("sh").args(["-c", line]), &self.at())
    }

    /// What either tool prints for these words, in this order: image-tool, qemu-img.
    fn both(&self, words: &str) -> [Outcome; 2] {
        [self.root.path().join("qemu-img"), PathBuf::from("qemu-img")].map(|tool| {
            let mut outcome = run(Command::new(&tool).args(words.split(' ')), &self.at());
            let path = tool.display().to_string();
            outcome.stderr = outcome.stderr.replace(&path, "qemu-img");
            outcome
        })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.at()).status();
    }
}

fn run(command: &mut Command, folder: &Path) -> Outcome {
    let command = command
        .current_dir(folder)
        .env("T", TOOL)
        .env("LC_ALL", "C");
    command.output().unwrap().into()
}

/// The flags of chattr(1).
fn flags(path: &Path) -> String {
    let line = must(
        "lsattr",
        Path::new("/"),
        &["lsattr", "-d", &path.display().to_string()],
    );
    line.split(' ').next().unwrap().replace('-', "")
}

#[test]
fn copy_on_write_is_turned_off_where_it_is_asked_for() {
    let Some(btrfs) = Mounted::new("btrfs") else {
        return;
    };
    let made = btrfs.shell("truncate -s 1M s; $T convert -f raw -O qcow2 s q");
    assert_eq!(made.status, Some(0), "{made:?}");
    for (verb, names) in [
        ("create -q -f qcow2 -o nocow=on n 1G", &["n"][..]),
        (
            "create -q -f qcow2 -o nocow=on,preallocation=full n 1M",
            &["n"],
        ),
        ("create -q -f raw -o nocow=on n 1G", &["n"]),
        (
            "create -q -f qcow2 -o nocow=on,data_file=d n 1M",
            &["n", "d"],
        ),
        ("convert -O qcow2 -o nocow=on q n", &["n"]),
        ("convert -O raw -o nocow=on q n", &["n"]),
    ] {
        // New, in the place of another file, and in place.
        for before in [
            "true",
            "echo old >n; echo old >d",
            "echo old >n; ln n other; echo old >d",
        ] {
            let done = btrfs.shell(&format!("rm -f n d other; {before}; $T {verb}"));
            assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""), "{verb}");
            for name in names {
                assert_eq!(
                    flags(&btrfs.at().join(name)),
                    "C",
                    "{verb} after {before}: {name}"
                );
            }
        }
        let without = verb.replace("nocow=on,", "").replace("-o nocow=on ", "");
        let done = btrfs.shell(&format!("rm -f n d other; $T {without}"));
        assert_eq!(done.status, Some(0), "{without}: {done:?}");
        assert_eq!(flags(&btrfs.at().join("n")), "", "{without}");
    }
}

#[test]
fn flags_of_the_file_that_is_replaced_are_kept() {
    let Some(btrfs) = Mounted::new("btrfs") else {
        return;
    };
    let made = btrfs.shell("truncate -s 1M s; $T convert -f raw -O qcow2 s q");
    assert_eq!(made.status, Some(0), "{made:?}");
    for flag in ["C", "c", "m", "A", "d", "S", ""] {
        for verb in [
            "create -q -f qcow2 n 1G",
            "create -q -f raw n 1G",
            "convert -O raw q n",
            "convert -O qcow2 q n",
            "dd if=q of=n",
        ] {
            let line = format!("rm -f n; touch n; [ -z '{flag}' ] || chattr +{flag} n; $T {verb}");
            let done = btrfs.shell(&line);
            assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""), "{line}");
            assert_eq!(flags(&btrfs.at().join("n")), flag, "{line}");
        }
    }
    // As a folder gives it to its new files.
    let done =
        btrfs.shell("mkdir f; chattr +C f; $T create -q -f qcow2 f/n 1G; $T convert -O raw q f/m");
    assert_eq!(done.status, Some(0), "{done:?}");
    assert_eq!(
        [
            flags(&btrfs.at().join("f/n")),
            flags(&btrfs.at().join("f/m"))
        ],
        ["C", "C"]
    );
}

#[test]
fn the_extent_size_hint_is_set_and_told_as_qemu_img_does() {
    let Some(xfs) = Mounted::new("xfs") else {
        return;
    };
    let hint = |name: &str| {
        let shown = must("xfs_io", &xfs.at(), &["xfs_io", "-c", "extsize", name]);
        shown.trim().to_owned()
    };
    let made = xfs.shell("truncate -s 1M s; $T convert -f raw -O qcow2 s q");
    assert_eq!(made.status, Some(0), "{made:?}");
    for verb in [
        "create -f qcow2 n 1G",
        "create -f raw n 1G",
        "create -f raw -o preallocation=falloc n 8M",
        "create -f qcow2 -o extent_size_hint=64k n 1G",
        "create -f qcow2 -o extent_size_hint=0 n 1G",
        "create -f raw -o extent_size_hint=2M n 1G",
        "create -f raw -o extent_size_hint=1000 n 1M",
        "create -f raw -o extent_size_hint=8G n 1M",
        "create -f qcow2 -o extent_size_hint=2M,data_file=d n 1M",
        "convert -O raw q n",
        "convert -O qcow2 q n",
        "convert -O qcow2 -o extent_size_hint=128k q n",
        "dd if=q of=n",
        "dd -O qcow2 if=q of=n",
    ] {
        for before in [
            "true",
            "echo old >n; echo old >d",
            "echo old >n; ln n other",
        ] {
            let [ours, theirs] = [0, 1].map(|tool| {
                assert_eq!(
                    xfs.shell(&format!("rm -f n d other; {before}")).status,
                    Some(0)
                );
                let outcome = xfs.both_of(tool, verb);
                let exists = outcome.status == Some(0);
                let data = exists && xfs.at().join("d").exists();
                let hints = [exists.then(|| hint("n")), data.then(|| hint("d"))];
                let printed = ["info", "info --output=json"]
                    .map(|how| exists.then(|| xfs.both(&format!("{how} n"))));
                for [ours, theirs] in printed.into_iter().flatten() {
                    assert_eq!(ours, theirs, "info after {verb}");
                }
                (outcome, hints)
            });
            assert_eq!(ours, theirs, "{verb} after {before}");
        }
    }
    let line = "info --image-opts driver=file,filename=q";
    let [ours, theirs] = xfs.both(line);
    assert_eq!(ours, theirs);
    let line = "info --image-opts driver=qcow2,file.driver=raw,file.offset=0,file.size=196608,file.file.filename=q";
    let [ours, theirs] = xfs.both(line);
    // Trees of options are shown in another order.
    let without_trees = |text: String| -> Vec<String> {
        text.lines()
            .filter(|line| !line.contains("json:"))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(without_trees(ours.stdout), without_trees(theirs.stdout));
}

impl Mounted {
    /// What one of the tools does: 0 is image-tool, 1 qemu-img.
    fn both_of(&self, tool: usize, words: &str) -> Outcome {
        let program = match tool {
            0 => self.root.path().join("qemu-img"),
            _ => PathBuf::from("qemu-img"),
        };
        let mut outcome = run(Command::new(&program).args(words.split(' ')), &self.at());
        let path = program.display().to_string();
        outcome.stderr = outcome.stderr.replace(&path, "qemu-img");
        outcome
    }

    /// How many bytes of a file are shared with others.
    fn shared(&self, name: &str) -> u64 {
        let line = must("filefrag", &self.at(), &["filefrag", "-v", "-b1", name]);
        let extents = line.lines().filter(|line| line.contains("shared"));
        let length = |line: &str| {
            let field = line.split(':').nth(3).unwrap();
            field.trim().parse::<u64>().unwrap()
        };
        extents.map(length).sum()
    }
}

#[test]
fn what_the_kernel_copies_is_shared() {
    for kind in ["btrfs", "xfs"] {
        let Some(mounted) = Mounted::new(kind) else {
            continue;
        };
        let made = mounted.shell(
            "head -c 20M /dev/urandom >s; truncate -s 24M s; $T convert -f raw -O qcow2 s q; \
             $T create -q -f qcow2 -b q -F qcow2 over; qemu-io -c 'write -P 3 1M 1M' -c 'write -z 4M 1M' over >/dev/null; \
             $T convert -c -f raw -O qcow2 s c; head -c 1000000 s >odd; sync",
        );
        assert_eq!(made.status, Some(0), "{made:?}");
        for (line, source, least) in [
            ("convert -C -f raw -O raw s t", "s", 20u64 << 20),
            ("convert -C -p -m 1 -f raw -O raw s t", "s", 20 << 20),
            ("convert -C -f raw -O qcow2 s t", "s", 20 << 20),
            ("convert -C -O raw q t", "q", 20 << 20),
            ("convert -C -O qcow2 q t", "q", 20 << 20),
            ("convert -C -O raw over t", "over", 19 << 20),
            ("convert -C -O qcow2 -B q -F qcow2 over t", "over", 1 << 20),
            // What has to be unpacked, and what ends within a block, is copied by hand.
            ("convert -C -O raw c t", "c", 0),
            ("convert -C -f raw -O raw odd t", "odd", 0),
            ("convert -C -f raw -O qcow2 s odd t", "", 0),
        ] {
            let done = mounted.shell(&format!("rm -f t; $T {line} >/dev/null && sync && {{ [ -z '{source}' ] || $T compare -q {source} t; }}"));
            assert_eq!(
                (done.status, done.stderr.as_str()),
                (Some(0), ""),
                "{kind}: {line}"
            );
            let shared = mounted.shared("t");
            assert!(shared >= least, "{kind}: {line}: {shared} bytes are shared");
        }
        // One after the other.
        let done = mounted
            .shell("cat s odd >both; truncate -s %512 both; $T compare -q -f raw -F qcow2 both t");
        assert_eq!(
            done,
            Outcome {
                status: Some(0),
                stdout: String::new(),
                stderr: String::new()
            }
        );
        // Without -C nothing is shared, and what is shared is not written to.
        let done = mounted.shell(
            "sha256sum s >sums; $T convert -C -f raw -O raw s t; qemu-io -f raw -c 'write -P 9 0 24M' t >/dev/null; \
             sha256sum --status -c sums && $T convert -f raw -O raw s u && sync",
        );
        assert_eq!(done.status, Some(0), "{kind}: {done:?}");
        assert_eq!(mounted.shared("u"), 0, "{kind}");
    }
}

#[test]
fn what_cannot_be_shared_is_copied() {
    // On this file system, to another one, and into what exists.
    let folder = tempfile::tempdir().unwrap();
    let line = "head -c 3M /dev/urandom >s; truncate -s 4M s; $T convert -f raw -O qcow2 s q; $T create -q -f qcow2 n 4M; \
        truncate -s 4M r; for t in 'raw s' 'qcow2 q'; do set -- $t; \
        $T convert -C -f $1 -O raw $2 a && $T convert -C -f $1 -O qcow2 $2 b && $T convert -C -n -f $1 -O qcow2 $2 n && \
        $T convert -C -n -f $1 -O raw $2 r && $T convert -C -f $1 -O raw $2 /dev/shm/image-tool-test-$$ || exit 9; \
        cmp s a && cmp s r && cmp s /dev/shm/image-tool-test-$$ && $T compare -q s b && $T compare -q s n || exit 8; \
        rm /dev/shm/image-tool-test-$$; $T convert -C -f $1 -O raw $2 /dev/stdout | cmp - s || exit 7; done";
    let done = run(Command::new("sh").args(["-c", line]), folder.path());
    assert_eq!(
        done,
        Outcome {
            status: Some(0),
            stdout: String::new(),
            stderr: String::new()
        }
    );
    assert!(fs::metadata(folder.path().join("a")).unwrap().len() == 4 << 20);
}
