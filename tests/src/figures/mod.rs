//! Figures: measured on this machine, beside a peer in the same run where there is one. One entry in [`FIGURES`] each.

mod block;
mod boot;
mod first_instruction;
mod image;
mod memory;
mod plot;
mod size;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::nested;
use crate::workplace::Workplace;

pub use plot::svg;

/// One measured value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What was measured.
    pub name: String,
    /// Ours.
    pub value: f64,
    /// Of both values.
    pub unit: String,
    /// Who else did the same in the same run, and their value.
    pub peer: Option<(String, f64)>,
    /// What the value is to be.
    pub aim: Option<Aim>,
}

/// What a value is to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Aim {
    /// At most so many times the peer's.
    Ratio(f64),
    /// At most this.
    AtMost(f64),
}

impl Measurement {
    /// A value of ours alone.
    pub fn new(name: impl Into<String>, value: f64, unit: &str) -> Self {
        Self {
            name: name.into(),
            value,
            unit: unit.to_owned(),
            peer: None,
            aim: None,
        }
    }

    /// With a peer's value.
    pub fn against(mut self, peer: &str, value: f64) -> Self {
        self.peer = Some((peer.to_owned(), value));
        self
    }

    /// With an aim.
    pub fn aiming(mut self, aim: Aim) -> Self {
        self.aim = Some(aim);
        self
    }

    /// How many times the peer's value ours is.
    pub fn ratio(&self) -> Option<f64> {
        let (_, theirs) = self.peer.as_ref()?;
        Some(self.value / theirs)
    }

    /// Whether the value is what it is to be.
    pub fn is_met(&self) -> Option<bool> {
        match self.aim? {
            Aim::Ratio(most) => Some(self.ratio()? <= most),
            Aim::AtMost(most) => Some(self.value <= most),
        }
    }
}

/// Where a figure is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On this machine.
    Here,
    /// Where KVM can run Linux: here, or in an outer host with these arguments of `bulkhead-nested`.
    Linux(&'static [&'static str]),
    /// In an outer host always, since its clock is what makes the figure.
    OuterHost(&'static [&'static str]),
}

/// A figure by its name.
pub struct Figure {
    /// What people call it by.
    pub name: &'static str,
    /// Where it is measured.
    pub place: Place,
    /// Measures it there.
    pub measure: fn(&Workplace) -> Result<Vec<Measurement>>,
}

/// What an outer host needs for QEMU as a peer.
const WITH_QEMU: &[&str] = &[
    "--icount",
    "--with",
    "/usr/bin/qemu-system-x86_64",
    "--with",
    "/usr/share/seabios/bios-microvm.bin",
    "--with",
    "/usr/share/qemu/linuxboot_dma.bin",
    "--with",
    "/usr/share/qemu/pvh.bin",
    "--with",
    "/usr/share/qemu/kvmvapic.bin",
];

/// All of them.
pub const FIGURES: [Figure; 14] = [
    Figure {
        name: "boot",
        place: Place::OuterHost(WITH_QEMU),
        measure: boot::measure,
    },
    Figure {
        name: "first-instruction",
        place: Place::Here,
        measure: first_instruction::measure,
    },
    Figure {
        name: "memory",
        place: Place::Linux(&[]),
        measure: memory::measure,
    },
    Figure {
        name: "binaries",
        place: Place::Here,
        measure: size::binaries,
    },
    Figure {
        name: "lines",
        place: Place::Here,
        measure: size::lines,
    },
    Figure {
        name: "image-convert",
        place: Place::Here,
        measure: image::convert,
    },
    Figure {
        name: "block",
        place: Place::Here,
        measure: block::requests,
    },
    Figure {
        name: "image-compress",
        place: Place::Here,
        measure: image::compress,
    },
    Figure {
        name: "image-decompress",
        place: Place::Here,
        measure: image::decompress,
    },
    Figure {
        name: "image-compare",
        place: Place::Here,
        measure: image::compare,
    },
    Figure {
        name: "image-check",
        place: Place::Here,
        measure: image::check,
    },
    Figure {
        name: "image-header",
        place: Place::Here,
        measure: image::header,
    },
    Figure {
        name: "image-commit",
        place: Place::Here,
        measure: image::commit,
    },
    Figure {
        name: "image-rebase",
        place: Place::Here,
        measure: image::rebase,
    },
];

/// How a measurement comes out of an outer host.
pub const MARK: &str = "measurement: ";

impl Figure {
    /// Whether `pattern` names it: its name, or the beginning of its name up to a hyphen.
    pub fn is_named(&self, pattern: &str) -> bool {
        self.name
            .strip_prefix(pattern)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }

    /// Measures it where it has to be.
    pub fn run(&self, workplace: &Workplace) -> Result<Vec<Measurement>> {
        match self.place {
            Place::Here => (self.measure)(workplace),
            Place::Linux(_) if nested::needed()?.is_none() => (self.measure)(workplace),
            Place::Linux(options) | Place::OuterHost(options) => {
                self.run_nested(workplace, options)
            }
        }
    }

    fn run_nested(&self, workplace: &Workplace, options: &[&str]) -> Result<Vec<Measurement>> {
        let mut nested = Command::new(workplace.program("bulkhead-nested")?);
        nested
            .args(options)
            .args(["bulkhead-bench", "--here", self.name]);
        let output = nested.output().context("bulkhead-nested")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!(
                "{}\n{text}{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let lines = text.lines().filter_map(|line| line.strip_prefix(MARK));
        lines
            .map(|line| serde_json::from_str(line).context("measurement"))
            .collect()
    }
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Seconds a command takes to its end.
fn seconds(command: &mut Command) -> Result<f64> {
    let start = std::time::Instant::now();
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let took = start.elapsed().as_secs_f64();
    if !output.status.success() {
        bail!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(took)
}

/// Writes what was measured as JSON and as a picture.
pub fn save(measurements: &[Measurement], folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let json = serde_json::to_vec_pretty(measurements).context("JSON")?;
    for (name, content) in [
        ("figures.json", json),
        ("figures.svg", svg(measurements).into_bytes()),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, content).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
