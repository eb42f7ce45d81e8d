//! `bench`: times a number of equal requests.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use clap::Command;
use qcow::Image;

use crate::command_line::cache::Cache;
use crate::command_line::getopt::Matches;
use crate::command_line::manual::{DONE_OR_FAILED, Manual};
use crate::command_line::options::{self, flag, value};
use crate::confine;
use crate::copy::workers;
use crate::open::disk::Disk;
use crate::open::{self, Opening};
use crate::output;
use crate::output::errors::cause;
use crate::verbs::close;

pub(crate) const NAME: &str = "bench";

const INT_MAX: u64 = i32::MAX as u64;

pub(super) const MANUAL: Manual = Manual {
    about: "Time equal requests to an image",
    description: "Sends read or write requests of one size, several at once, and prints how long they took.",
    statuses: DONE_OR_FAILED,
    examples: &[
        (
            "Read 1000 times 64 KiB",
            "image-tool bench -f qcow2 -c 1000 -s 64k disk.qcow2",
        ),
        (
            "Write, with a flush after every 100 requests",
            "image-tool bench -f raw -w -c 1000 --flush-interval 100 disk.raw",
        ),
    ],
};

pub(crate) fn command() -> Command {
    options::command(NAME, &MANUAL)
        .arg(options::format())
        .arg(value(
            "flush-interval",
            None,
            "N",
            "flush after this number of writes",
        ))
        .arg(options::force_share())
        .arg(options::image_opts())
        .arg(value(
            "cache",
            't',
            "CACHE",
            "cache mode (default: writeback)",
        ))
        .arg(value(
            "count",
            'c',
            "COUNT",
            "number of requests (default: 75000)",
        ))
        .arg(value(
            "depth",
            'd',
            "DEPTH",
            "requests in flight (default: 64)",
        ))
        .arg(value(
            "offset",
            'o',
            "OFFSET",
            "offset of the first request (default: 0)",
        ))
        .arg(value(
            "buffer-size",
            's',
            "SIZE",
            "size of a request (default: 4k)",
        ))
        .arg(value(
            "step-size",
            'S',
            "SIZE",
            "distance between requests (default: their size)",
        ))
        .arg(value("aio", 'i', "AIO", "accepted and ignored"))
        .arg(flag("native", 'n', "accepted and ignored"))
        .arg(flag(
            "no-drain",
            None,
            "do not wait for requests in flight before a flush",
        ))
        .arg(value(
            "pattern",
            None,
            "BYTE",
            "value of the bytes to write (default: 0)",
        ))
        .arg(flag("write", 'w', "write instead of reading"))
        .arg(options::short_flag("quiet", 'q', "accepted and ignored"))
        .arg(options::operand("FILENAME", "the image"))
}

/// Refuses `aio=native` with the page cache, as QEMU does, although `aio` has no effect here.
fn check_aio(matches: &Matches, name: &std::ffi::OsStr) -> Result<()> {
    let past_the_cache = |mode: String| matches!(mode.as_str(), "none" | "off" | "directsync");
    let is_native =
        matches.flag("native") || matches.text("aio").is_some_and(|aio| aio == "native");
    if is_native && !matches.text("cache").is_some_and(past_the_cache) {
        bail!(
            "Could not open '{}': aio=native was specified, but it requires cache.direct=on, which was not specified.",
            name.to_string_lossy()
        );
    }
    Ok(())
}

/// The parameters of a run.
#[derive(Debug)]
struct Run {
    write: bool,
    count: u64,
    depth: u64,
    offset: u64,
    buffer: usize,
    step: u64,
    pattern: u8,
    flush_interval: u64,
}

impl Run {
    fn read(matches: &Matches) -> Result<Self> {
        let number = |option: &str, what: &str, min, max, default| match matches.text(option) {
            Some(text) => options::number(what, &text, min, max),
            None => Ok(default),
        };
        let size = |option: &str, what: &str, min, max, default| match matches.text(option) {
            Some(text) => options::size_within(what, &text, min, max),
            None => Ok(default),
        };
        if matches
            .text("cache")
            .is_some_and(|mode| Cache::parse(&mode).is_none())
        {
            bail!("Invalid cache mode");
        }
        if let Some(aio) = matches
            .text("aio")
            .filter(|aio| !matches!(aio.as_str(), "threads" | "native" | "io_uring"))
        {
            bail!("Invalid aio option: {aio}");
        }
        let buffer = size("buffer-size", "buffer size", 1, INT_MAX, 4096)?;
        let step = size("step-size", "step size", 0, INT_MAX, 0)?;
        let run = Self {
            write: matches.flag("write"),
            count: number("count", "request count", 1, INT_MAX, 75000)?,
            depth: number("depth", "queue depth", 1, INT_MAX, 64)?,
            offset: size("offset", "offset", 0, i64::MAX as u64, 0)?,
            buffer: usize::try_from(buffer)?,
            step: if step == 0 { buffer } else { step },
            pattern: u8::try_from(number("pattern", "pattern byte", 0, 255, 0)?)?,
            flush_interval: number("flush-interval", "flush interval", 0, INT_MAX, 0)?,
        };
        Ok(run)
    }

    /// The offset of a request: offsets wrap at the end of the image, and a request that crosses it fails.
    fn offset_of(&self, index: u64, image_size: u64) -> u64 {
        match (index, image_size) {
            (0, _) => self.offset,
            (_, 0) => 0,
            _ => (u128::from(self.offset) + u128::from(self.step) * u128::from(index))
                .rem_euclid(image_size.into()) as u64,
        }
    }

    fn announce(&self) {
        output::line(&format!(
            "Sending {} {} requests, {} bytes each, {} in parallel (starting at offset {}, step size {})",
            self.count,
            if self.write { "write" } else { "read" },
            self.buffer,
            self.depth,
            self.offset,
            self.step
        ));
        if self.flush_interval > 0 {
            output::line(&format!(
                "Sending flush every {} requests",
                self.flush_interval
            ));
        }
    }

    fn request(&self, image: &Image, index: u64, buffer: &mut [u8]) -> qcow::Result<()> {
        let disk = Disk(image);
        let offset = self.offset_of(index, disk.size());
        let end = offset.saturating_add(buffer.len() as u64);
        if self.write {
            image.write_at(offset, buffer)?;
        } else if end <= disk.size() {
            disk.read(offset, buffer)?;
        } else {
            image.read_at(offset, buffer)?;
        }
        if self.flush_interval > 0 && (index + 1).is_multiple_of(self.flush_interval) {
            image.flush()?;
        }
        Ok(())
    }
}

pub(crate) fn run(matches: &Matches) -> Result<ExitCode> {
    let run = Run::read(matches)?;
    let name = options::one_image(NAME, matches)?;
    if !run.write && run.flush_interval > 0 {
        bail!("--flush-interval is only available in write tests");
    }
    if run.flush_interval > 0 && run.flush_interval < run.depth {
        bail!("Flush interval can't be smaller than depth");
    }
    let source = options::source(matches, name)?;
    let share = matches.flag("force-share");
    let opened = open::open(
        &source,
        &Opening {
            writable: run.write,
            share,
            ..Opening::default()
        },
    )?;
    check_aio(matches, name)?;
    if run.write && opened.guessed && !opened.image.format().has_metadata() {
        bail!(
            "Could not open '{}': a raw image is written only with -f raw",
            source.text
        );
    }
    confine::enter(&[]);
    run.announce();
    let started = Instant::now();
    requests(&run, &opened.image)?;
    output::line(&format!(
        "Run completed in {:.3} seconds.",
        started.elapsed().as_secs_f64()
    ));
    close(opened)?;
    Ok(ExitCode::SUCCESS)
}

/// Sends the requests, with a thread for each processor but not more than the queue depth.
fn requests(run: &Run, image: &Image) -> Result<()> {
    let processors = workers::processors() as u64;
    let next = AtomicU64::new(0);
    let failure = Mutex::new(None);
    let work = || {
        let mut buffer = vec![run.pattern; run.buffer];
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= run.count {
                return;
            }
            if let Err(error) = run.request(image, index, &mut buffer) {
                next.store(run.count, Ordering::Relaxed);
                failure
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(error);
                return;
            }
        }
    };
    workers::share(run.depth.min(processors) as usize, work);
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) if error.kind() == qcow::ErrorKind::OutOfRange => {
            bail!("Failed request: Input/output error")
        }
        Some(error) => Err(anyhow!("Failed request: {}", cause(&error, image.path()))),
        None => Ok(()),
    }
}
