//! How large the programs are, and how many lines the monitor has.

use std::path::Path;

use anyhow::{Context, Result};

use super::Measurement;
use crate::workplace::Workplace;

const PROGRAMS: [&str; 6] = [
    "bulkhead",
    "bulkhead-vmm",
    "bulkhead-block",
    "bulkhead-net",
    "bulkhead-net-helper",
    "image-tool",
];

/// What `bulkhead-vmm` is made of.
const MONITOR: [&str; 4] = ["vmm/src", "vmm/kvm/src", "vmm/boot/src", "vmm/devices/src"];

pub(super) fn binaries(workplace: &Workplace) -> Result<Vec<Measurement>> {
    let size = |name: &str| {
        let bytes = std::fs::metadata(workplace.program(name)?)
            .with_context(|| name.to_owned())?
            .len();
        Ok(Measurement::new(
            format!("size of {name}"),
            bytes as f64 / 1024.0,
            "KiB",
        ))
    };
    PROGRAMS.iter().map(|name| size(name)).collect()
}

pub(super) fn lines(_: &Workplace) -> Result<Vec<Measurement>> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let (mut measurements, mut all) = (Vec::new(), 0);
    for folder in MONITOR {
        let count = count_below(&root.join(folder))?;
        all += count;
        measurements.push(Measurement::new(
            format!("lines of code in {folder}"),
            count as f64,
            "lines",
        ));
    }
    measurements.push(Measurement::new(
        "lines of code in the monitor",
        all as f64,
        "lines",
    ));
    Ok(measurements)
}

fn count_below(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let tests = path.file_stem().is_some_and(|stem| stem == "tests");
        if path.is_dir() && !tests {
            count += count_below(&path)?;
        } else if !tests && path.extension().is_some_and(|extension| extension == "rs") {
            count += count_lines(
                &std::fs::read_to_string(&path).with_context(|| path.display().to_string())?,
            );
        }
    }
    Ok(count)
}

/// Lines that are neither empty, nor comment, nor unit tests, which come last in a file.
fn count_lines(source: &str) -> usize {
    let code = source
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    code.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .count()
}
