//! `compare`: whether two images show the same disk.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::Command;
use qcow::{Extent, Image};

use crate::cache::Cache;
use crate::confine;
use crate::copy::zero::{SECTOR, is_zero};
use crate::disk::Disk;
use crate::getopt::Matches;
use crate::open::{self, Opened, Opening};
use crate::options::{self, flag, value};
use crate::output;
use crate::progress::Progress;
use crate::reason::cause;
use crate::report::{self, Usage};
use crate::source::Source;
use crate::watch::Watch;

pub(crate) const NAME: &str = "compare";

const DIFFERENT: u8 = 1;
const NOT_OPENED: u8 = 2;
const NO_STATUS: u8 = 3;
const NOT_READ: u8 = 4;

/// How much is read at a time: both buffers stay in the processor's cache.
const CHUNK: u64 = 512 << 10;

pub(crate) fn command() -> Command {
    options::command(NAME, "Check if two images have the same contents")
        .arg(options::quiet())
        .arg(options::progress())
        .arg(value("a-format", 'f', "FMT", "format of the first image").alias("left-format"))
        .arg(value("b-format", 'F', "FMT", "format of the second image").alias("right-format"))
        .arg(options::image_opts())
        .arg(flag(
            "strict",
            's',
            "sizes and allocation must be the same, too",
        ))
        .arg(value(
            "cache",
            'T',
            "CACHE_MODE",
            "cache mode (default: writeback)",
        ))
        .arg(options::force_share())
        .arg(options::object())
        .arg(options::operand("FILENAME", "the two images"))
}

pub(crate) fn run(matches: &Matches) -> Result<ExitCode> {
    let quiet = matches.flag("quiet");
    options::refuse_objects(matches)?;
    let [first, second] = matches.operands() else {
        return Err(Usage::of(NAME, "Expecting two image file names"));
    };
    let progress = Arc::new(Progress::new(matches.flag("progress") && !quiet, 2.0));
    let opening = Opening {
        share: matches.flag("force-share"),
        ..Opening::default()
    };
    let open = |name, format: &str| -> Result<Opened> {
        let source = Source::parse(
            name,
            matches.text(format).as_deref(),
            matches.flag("image-opts"),
        )?;
        open::open(&source, &opening)
    };
    let watch = Watch::new()?;
    let images = options::cache(matches, "cache", Cache::Durable, "source cache option")
        .and_then(|_| Ok((open(first, "a-format")?, open(second, "b-format")?)));
    let outcome = match images {
        Ok((a, b)) => {
            confine::enter(&[])?;
            watch.start(progress.clone())?;
            let sides = Sides {
                a: Side {
                    image: &a.image,
                    name: first.to_string_lossy().into_owned(),
                },
                b: Side {
                    image: &b.image,
                    name: second.to_string_lossy().into_owned(),
                },
                strict: matches.flag("strict"),
                progress: &progress,
            };
            sides.compare()
        }
        Err(error) => Verdict::Failed(NOT_OPENED, error.to_string()),
    };
    let status = tell(outcome, quiet);
    progress.end();
    Ok(ExitCode::from(status))
}

/// How a comparison ends early.
enum Verdict {
    Same { sizes_differ: bool },
    Different { sizes_differ: bool, why: String },
    Failed(u8, String),
}

fn tell(verdict: Verdict, quiet: bool) -> u8 {
    match verdict {
        Verdict::Same { sizes_differ } => {
            warn_of_sizes(sizes_differ, quiet);
            output::unless(quiet, "Images are identical.");
            0
        }
        Verdict::Different { sizes_differ, why } => {
            warn_of_sizes(sizes_differ, quiet);
            output::unless(quiet, &why);
            DIFFERENT
        }
        Verdict::Failed(status, message) => {
            report::error(message);
            status
        }
    }
}

fn warn_of_sizes(differ: bool, quiet: bool) {
    if differ {
        output::unless(quiet, "Warning: Image size mismatch!");
    }
}

struct Side<'a> {
    image: &'a Image,
    name: String,
}

impl Side<'_> {
    fn size(&self) -> u64 {
        Disk(self.image).size()
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent, Verdict> {
        Disk(self.image).map(offset, len).map_err(|_| {
            Verdict::Failed(
                NO_STATUS,
                format!("Sector allocation test failed for {}", self.name),
            )
        })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Verdict> {
        Disk(self.image).read(offset, buffer).map_err(|error| {
            let cause = cause(&error, self.image.path());
            Verdict::Failed(
                NOT_READ,
                format!(
                    "Error while reading offset {offset} of {}: {cause}",
                    self.name
                ),
            )
        })
    }
}

struct Sides<'a> {
    a: Side<'a>,
    b: Side<'a>,
    strict: bool,
    progress: &'a Progress,
}

impl Sides<'_> {
    fn compare(&self) -> Verdict {
        match self.compare_all() {
            Ok(()) => Verdict::Same {
                sizes_differ: self.a.size() != self.b.size(),
            },
            Err(verdict) => verdict,
        }
    }

    fn compare_all(&self) -> Result<(), Verdict> {
        let (short, long) = if self.a.size() <= self.b.size() {
            (&self.a, &self.b)
        } else {
            (&self.b, &self.a)
        };
        if self.strict && short.size() != long.size() {
            return Err(different("Strict mode: Image size mismatch!"));
        }
        self.progress.set(0.0);
        let mut buffers = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
        let (mut a, mut b) = (None, None);
        let mut offset = 0;
        while offset < short.size() {
            let a = known(&mut a, &self.a, offset, short.size())?;
            let b = known(&mut b, &self.b, offset, short.size())?;
            if self.strict && (a.present, a.zero, a.data) != (b.present, b.zero, b.data) {
                return Err(different(&format!(
                    "Strict mode: Offset {offset} block status mismatch!"
                )));
            }
            let end = (a.start + a.length).min(b.start + b.length);
            let len = self.range(
                offset,
                end - offset,
                reads_zero(a),
                reads_zero(b),
                &mut buffers,
            )?;
            offset += len;
            self.progress
                .advance(len as f32 / long.size() as f32 * 100.0);
        }
        self.tail(long, offset, &mut buffers.0)
    }

    /// Compares the beginning of a range; returns how much of it.
    fn range(
        &self,
        offset: u64,
        len: u64,
        a_zero: bool,
        b_zero: bool,
        (a, b): &mut (Vec<u8>, Vec<u8>),
    ) -> Result<u64, Verdict> {
        if a_zero && b_zero {
            return Ok(len);
        }
        let len = len.min(CHUNK);
        let a = a.get_mut(..len as usize).unwrap_or_default();
        if a_zero || b_zero {
            let side = if a_zero { &self.b } else { &self.a };
            only_zeroes(side, offset, a)?;
            return Ok(len);
        }
        let b = b.get_mut(..len as usize).unwrap_or_default();
        self.a.read(offset, a)?;
        self.b.read(offset, b)?;
        if a != b {
            let same = a
                .chunks(SECTOR)
                .zip(b.chunks(SECTOR))
                .take_while(|(a, b)| a == b)
                .count();
            return Err(mismatch(offset + (same * SECTOR) as u64));
        }
        Ok(len)
    }

    /// The longer image must hold nothing beyond the end of the shorter one.
    fn tail(&self, long: &Side<'_>, mut offset: u64, buffer: &mut [u8]) -> Result<(), Verdict> {
        while offset < long.size() {
            let extent = long
                .map(offset, long.size() - offset)
                .map_err(after_sizes)?;
            let mut len = extent.length;
            if !reads_zero(&extent) {
                len = len.min(CHUNK);
                only_zeroes(
                    long,
                    offset,
                    buffer.get_mut(..len as usize).unwrap_or_default(),
                )
                .map_err(after_sizes)?;
            }
            offset += len;
            self.progress
                .advance(len as f32 / long.size() as f32 * 100.0);
        }
        Ok(())
    }
}

/// The extent at `offset`, asked for again only when the last one has been used up.
fn known<'e>(
    extent: &'e mut Option<Extent>,
    side: &Side<'_>,
    offset: u64,
    end: u64,
) -> Result<&'e Extent, Verdict> {
    match extent {
        Some(known) if offset < known.start + known.length => {}
        _ => *extent = None,
    }
    match extent {
        Some(known) => Ok(known),
        None => Ok(extent.insert(side.map(offset, end - offset)?)),
    }
}

fn reads_zero(extent: &Extent) -> bool {
    extent.zero || !extent.present
}

fn only_zeroes(side: &Side<'_>, offset: u64, buffer: &mut [u8]) -> Result<(), Verdict> {
    side.read(offset, buffer)?;
    match buffer.chunks(SECTOR).position(|sector| !is_zero(sector)) {
        Some(sector) => Err(mismatch(offset + (sector * SECTOR) as u64)),
        None => Ok(()),
    }
}

fn different(why: &str) -> Verdict {
    Verdict::Different {
        sizes_differ: false,
        why: why.to_owned(),
    }
}

fn mismatch(offset: u64) -> Verdict {
    different(&format!("Content mismatch at offset {offset}!"))
}

/// What is found beyond the end of the shorter image comes after the warning that there is one.
fn after_sizes(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Different { why, .. } => Verdict::Different {
            sizes_differ: true,
            why,
        },
        other => other,
    }
}
