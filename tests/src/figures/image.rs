//! `image-tool` beside `qemu-img`, turn by turn, so that what else the machine does hits both.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Measurement, median, seconds};
use crate::hash;
use crate::workplace::{Workplace, scratch_folder};

const ROUNDS: usize = 7;
const SIZE: usize = 256 << 20;

/// A raw image, half of it data, to qcow2.
pub(super) fn convert(workplace: &Workplace) -> Result<Vec<Measurement>> {
    let folder = scratch_folder(workplace)?;
    let raw = std::fs::File::create(folder.path().join("raw")).context("raw")?;
    std::os::unix::fs::FileExt::write_all_at(&raw, &hash::pseudo_random(SIZE / 2, 5), 0)
        .context("raw")?;
    raw.set_len(SIZE as u64).context("raw")?;
    let arguments = ["convert", "-f", "raw", "-O", "qcow2", "raw", "out.qcow2"];
    let ours = workplace.program("image-tool")?;
    let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (program, times) in [
            (ours.as_path(), &mut our_times),
            (Path::new("qemu-img"), &mut their_times),
        ] {
            times.push(seconds(
                Command::new(program)
                    .args(arguments)
                    .current_dir(folder.path()),
            )?);
        }
    }
    let measurement = Measurement::new("convert 256 MiB of raw to qcow2", median(our_times), "s");
    Ok(vec![measurement.against("qemu-img", median(their_times))])
}
