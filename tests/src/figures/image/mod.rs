//! `image-tool` beside `qemu-img`: the same options on the same images, turn by turn, so that what else the machine
//! does hits both; everything that is read is in the page cache.

mod content;
mod scattered;
mod turns;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::Measurement;
use crate::workplace::{Workplace, scratch_folder};
use content::{Content, write};
use turns::Turns;

const GIB: u64 = 1 << 30;

/// The disk of most figures: 4 GiB, of which 1.4 are data.
const DISK: Content = Content {
    size: 4 * GIB,
    pieces: 1434,
    seed: 1,
};

/// Of the other's time, at most so much to copy a disk.
const AIM_COPY: f64 = 0.6;

/// A folder with the images of a figure, and both programs.
struct Bench {
    folder: tempfile::TempDir,
    ours: std::path::PathBuf,
}

impl Bench {
    fn new(workplace: &Workplace) -> Result<Self> {
        Ok(Self {
            folder: scratch_folder(workplace)?,
            ours: workplace.program("image-tool")?,
        })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes an image for the figure, with whichever program.
    fn make(&self, program: &Path, arguments: &str) -> Result<()> {
        turns::run(
            Command::new(program)
                .args(arguments.split_whitespace())
                .current_dir(self.path()),
        )
        .map(drop)
    }

    fn make_with_ours(&self, arguments: &str) -> Result<()> {
        self.make(&self.ours, arguments)
    }

    fn make_with_qemu(&self, arguments: &str) -> Result<()> {
        self.make(Path::new("qemu-img"), arguments)
    }

    /// Both programs with the same arguments.
    fn both(&self, arguments: &str) -> Turns<'_> {
        self.each(arguments, arguments)
    }

    fn each(&self, ours: &str, theirs: &str) -> Turns<'_> {
        Turns::new(
            self.path(),
            (&self.ours, ours),
            ("qemu-img".as_ref(), theirs),
        )
    }
}

/// To and from qcow2.
pub(super) fn convert(workplace: &Workplace) -> Result<Vec<Measurement>> {
    let bench = Bench::new(workplace)?;
    write(&bench.path().join("raw"), &DISK)?;
    let mut all = bench
        .both("convert -f raw -O qcow2 raw out")
        .writes("out")
        .measure("raw to qcow2", AIM_COPY)?;
    bench.make_with_qemu("convert -f raw -O qcow2 raw qcow2")?;
    all.extend(
        bench
            .both("convert -f qcow2 -O raw qcow2 out")
            .writes("out")
            .measure("qcow2 to raw", AIM_COPY)?,
    );
    Ok(all)
}

/// To compressed clusters; `qemu-img` with all the parallel work it can do.
pub(super) fn compress(workplace: &Workplace) -> Result<Vec<Measurement>> {
    let bench = Bench::new(workplace)?;
    write(&bench.path().join("raw"), &DISK)?;
    let mut all = Vec::new();
    for (codec, aim) in [("zlib", 0.35), ("zstd", 0.6)] {
        let operands = format!("-o compression_type={codec} raw out");
        all.extend(
            bench
                .each(
                    &format!("convert -f raw -O qcow2 -c {operands}"),
                    &format!("convert -f raw -O qcow2 -c -m 16 -W {operands}"),
                )
                .writes("out")
                .size_at_most(1.01)
                .measure(&format!("raw to qcow2, {codec}"), aim)?,
        );
    }
    Ok(all)
}

/// From compressed clusters.
pub(super) fn decompress(workplace: &Workplace) -> Result<Vec<Measurement>> {
    let bench = Bench::new(workplace)?;
    write(&bench.path().join("raw"), &DISK)?;
    let mut all = Vec::new();
    for codec in ["zlib", "zstd"] {
        let options = format!("-c -m 16 -W -o compression_type={codec}");
        bench.make_with_qemu(&format!("convert -f raw -O qcow2 {options} raw {codec}"))?;
        all.extend(
            bench
                .both(&format!("convert -f qcow2 -O raw {codec} out"))
                .writes("out")
                .measure(&format!("qcow2, {codec}, to raw"), 0.5)?,
        );
    }
    Ok(all)
}

/// Two equal images.
pub(super) fn compare(workplace: &Workplace) -> Result<Vec<Measurement>> {
    let bench = Bench::new(workplace)?;
    write(&bench.path().join("raw"), &DISK)?;
    bench.make_with_qemu("convert -f raw -O qcow2 raw qcow2")?;
    bench
        .both("compare -f raw -F qcow2 raw qcow2")
        .measure("compare", 0.5)
}

/// The metadata of a large image.
pub(super) fn check(workplace: &Workplace) -> Result<Vec<Measurement>> {
    let bench = Bench::new(workplace)?;
    scattered::write(&bench.path().join("scattered"))?;
    bench
        .both("check -f qcow2 scattered")
        .measure("check of 1 TiB, 16 GiB of it allocated", 0.5)
}

/// 64 TiB of nothing.
pub(super) fn header(workplace: &Workplace) -> Result<Vec<Measurement>> {
    let bench = Bench::new(workplace)?;
    let create = "create -q -f qcow2 -o cluster_size=2M out 64T";
    let mut all = bench
        .both(create)
        .writes("out")
        .measure_at_most("create of 64 TiB", 0.010)?;
    bench.make_with_qemu(create)?;
    all.extend(
        bench
            .both("info -f qcow2 out")
            .measure_at_most("info of 64 TiB", 0.010)?,
    );
    Ok(all)
}

/// 1 GiB over 4 GiB. Both begin with the same base and the same overlay each time.
pub(super) fn commit(workplace: &Workplace) -> Result<Vec<Measurement>> {
    let bench = Bench::new(workplace)?;
    overlay(&bench)?;
    bench
        .both("commit -q -f qcow2 overlay")
        .restores("base")
        .restores("overlay")
        .measure("commit of 1 GiB", AIM_COPY)
}

/// The same overlay, onto a base that differs in one piece of sixteen.
pub(super) fn rebase(workplace: &Workplace) -> Result<Vec<Measurement>> {
    let bench = Bench::new(workplace)?;
    overlay(&bench)?;
    content::change(&bench.path().join("raw"), &DISK, 16)?;
    bench.make_with_qemu("convert -f raw -O qcow2 raw other")?;
    bench
        .both("rebase -q -f qcow2 -b other -F qcow2 overlay")
        .restores("overlay")
        .measure("rebase of 1 GiB", AIM_COPY)
}

/// `base`, and `overlay` on it.
fn overlay(bench: &Bench) -> Result<()> {
    write(&bench.path().join("raw"), &DISK)?;
    bench.make_with_qemu("convert -f raw -O qcow2 raw base")?;
    let above = Content {
        pieces: 1024,
        seed: 2,
        ..DISK
    };
    let raw = bench.path().join("above");
    write(&raw, &above)?;
    bench.make_with_qemu("convert -f raw -O qcow2 above overlay")?;
    std::fs::remove_file(&raw).context("above")?;
    bench.make_with_ours("rebase -u -f qcow2 -b base -F qcow2 overlay")
}
