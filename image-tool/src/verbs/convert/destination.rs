//! The target of `convert`: a new image, or with `-n` an existing one.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use qcow::{Format, Image, Preallocation};

use super::settings::Settings;
use super::target_format;
use crate::command_line::cache::Cache;
use crate::command_line::format_options::{self, FormatOptions};
use crate::command_line::source::{Source, local_path};
use crate::open::disk::Disk;
use crate::open::{self, Opened, Opening};
use crate::output::errors::describe;
use crate::output::report::Hinted;
use crate::signals::Signals;
use crate::target::incomplete;
use crate::target::{self, Target};
use crate::verbs::{close, create};

/// The open target.
#[derive(Debug)]
pub(crate) struct Destination {
    opened: Opened,
    /// The new file; `None` with `-n`.
    target: Option<Target>,
    pub(crate) has_backing: bool,
    pub(crate) backing_len: Option<u64>,
    /// It reads as zeroes.
    pub(crate) is_zero: bool,
}

impl Destination {
    pub(crate) fn open(
        settings: &Settings,
        name: &OsStr,
        sources: &[Opened],
        signals: &Signals,
    ) -> Result<Self> {
        if settings.no_create {
            return Self::existing(settings, name, sources);
        }
        Self::new(settings, name, sources, signals)
    }

    fn new(
        settings: &Settings,
        name: &OsStr,
        sources: &[Opened],
        signals: &Signals,
    ) -> Result<Self> {
        let format = target_format(&settings.format)?;
        let path = local_path(name)?;
        let mut options = FormatOptions::new(format_options::creatable(format));
        if let Some(list) = &settings.options {
            options.parse(list)?;
        }
        let size = sources
            .iter()
            .try_fold(0u64, |sum, source| sum.checked_add(source.disk().size()))
            .ok_or_else(|| anyhow!("The sources are too large together"))?;
        options.set_number("size", size)?;
        create::set_backing(
            &mut options,
            format,
            settings.backing.clone(),
            settings.backing_format.clone(),
        )?;
        let has_backing = options.text("backing_file").is_some();
        check(settings, format, &options, sources)?;

        let shown = name.to_string_lossy();
        let failed = |error: anyhow::Error| match error.downcast::<Hinted>() {
            Ok(hinted) => {
                let message = format!(
                    "{shown}: error while converting {format}: {}",
                    hinted.message
                );
                Hinted { message, ..hinted }.into()
            }
            Err(error) => anyhow!("{shown}: error while converting {format}: {error}"),
        };
        let creation = format_options::creation(format, &options, size).map_err(failed)?;
        if format_options::encryption(&options)
            .map_err(failed)?
            .is_some()
        {
            return Err(failed(format_options::not_encrypting(&options)));
        }
        let streams = (!format.has_metadata()).then_some(signals);
        let mut target = Target::prepare(&path, streams).map_err(failed)?;
        target.check_sources(sources).map_err(failed)?;
        target.create(&creation).map_err(|error| {
            failed(anyhow!(
                "{}",
                create::describe_create_error(&error, format, &target)
            ))
        })?;
        // A target that is written in place is synced all the same.
        let unsynced = settings.target_cache()? == Cache::Unsafe;
        let opened = target.open(&shown, format, unsynced)?;
        let backing_len = opened.image.backing().map(|backing| Disk(backing).size());
        // Preallocated space reads as zeroes; a device does not, but unallocated clusters of qcow2 on it do.
        let reads_zero = format.has_metadata() || !target.is_device();
        let is_zero = !has_backing && settings.sparse.is_some() && reads_zero;
        Ok(Self {
            opened,
            target: Some(target),
            has_backing,
            backing_len,
            is_zero,
        })
    }

    fn existing(settings: &Settings, name: &OsStr, sources: &[Opened]) -> Result<Self> {
        // Never probed: what a guest wrote to a raw image must not decide its format.
        let format = if settings.target_image_opts {
            None
        } else {
            Some(settings.format.as_str())
        };
        if let Some(format) = format {
            target_format(format)?;
        }
        let has_backing = settings.backing.is_some();
        if settings.target_is_zero && has_backing {
            bail!("Cannot use --target-is-zero when the destination image has a backing file");
        }
        check_sources(settings, has_backing, sources)?;
        let source = Source::parse(name, format, settings.target_image_opts)?;
        let opened = open::open(&source, &Opening::writable())?;
        let written = opened.paths.iter().map(std::fs::metadata);
        for written in written.filter_map(io::Result::ok) {
            if sources.iter().any(|source| source.reads(&written)) {
                return Err(target::is_read(opened.image.path()));
            }
        }
        if settings.target_image_opts && opened.guessed {
            bail!(
                "Could not open '{}': the format of an image that is written must be given (driver=…)",
                source.text
            );
        }
        if settings.compress && !opened.image.format().has_compression() {
            bail!("Compression not supported for this file format");
        }
        let is_v2 = (opened.info()?.qcow2).is_some_and(|qcow2| qcow2.version < 3);
        check_bitmaps(settings, opened.image.format(), is_v2)?;
        Ok(Self {
            opened,
            target: None,
            has_backing,
            backing_len: None,
            is_zero: settings.target_is_zero,
        })
    }

    pub(crate) fn image(&self) -> &Image {
        &self.opened.image
    }

    /// Whether it is a pipe, socket or character device.
    pub(crate) fn is_stream(&self) -> bool {
        self.target.as_ref().is_some_and(Target::is_stream)
    }

    /// The folders in which names change, for the confinement.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        self.target.iter().flat_map(Target::folders).collect()
    }

    /// Marks an image that is written in place as incomplete, if its format has such a mark, for the case of a failure
    /// or a crash.
    pub(crate) fn mark(&self) -> Result<bool> {
        if self.target.as_ref().is_some_and(Target::is_staged) {
            return Ok(false);
        }
        let path = self.image().path();
        let marked = incomplete::add_marked(path, || self.image().set_incomplete(true));
        marked.map_err(|error| anyhow!("{}", describe(&error, path)))
    }

    /// Flushes the complete image and clears the mark.
    pub(crate) fn unmark(&self) -> Result<()> {
        let path = self.image().path();
        let unmarked =
            incomplete::remove_marked(path, || self.image().set_incomplete(false).map(|_| ()));
        unmarked.map_err(|error| anyhow!("{}", describe(&error, path)))
    }

    /// Closes the complete image and gives it its name.
    pub(crate) fn finish(self) -> Result<()> {
        let path = self.image().path().to_owned();
        if let Some(target) = &self.target {
            target.check_written()?;
        }
        close(self.opened)?;
        match self.target {
            Some(target) => target.finish()?,
            None => incomplete::remove(&path),
        }
        Ok(())
    }
}

/// Extends a raw file to whole sectors, as qemu-img does.
pub(super) fn make_whole(image: &Image) -> Result<()> {
    let size = Disk(image).size();
    if image.format().has_metadata() || size == image.virtual_size() {
        return Ok(());
    }
    image
        .resize(size, Preallocation::Off)
        .map_err(|error| anyhow!("{}", describe(&error, image.path())))
}

/// Refuses options of a new target that do not go together.
fn check(
    settings: &Settings,
    format: Format,
    options: &FormatOptions,
    sources: &[Opened],
) -> Result<()> {
    let has_backing = options.text("backing_file").is_some();
    check_sources(settings, has_backing, sources)?;
    if has_backing && options.text("backing_fmt").is_none() {
        bail!("Use of backing file requires explicit backing format");
    }
    if settings.compress {
        if !format.has_compression() {
            bail!("Compression not supported for this file format");
        }
        let preallocation = options.text("preallocation");
        if preallocation.is_some_and(|mode| mode != Preallocation::Off.name()) {
            bail!("Compression and preallocation not supported at the same time");
        }
    }
    let is_v2 = matches!(options.text("compat"), Some("0.10" | "v2"));
    check_bitmaps(settings, format, is_v2)
}

fn check_sources(settings: &Settings, has_backing: bool, sources: &[Opened]) -> Result<()> {
    if sources.len() > 1 && has_backing {
        bail!(
            "Having a backing file for the target makes no sense when concatenating multiple input images"
        );
    }
    if sources.len() > 1 && settings.snapshot.is_some() {
        bail!("No support for concatenating multiple snapshot");
    }
    if settings.bitmaps {
        if sources.len() > 1 {
            bail!("Copying bitmaps only possible with single source");
        }
        for source in sources {
            let qcow2 = source.info()?.qcow2;
            if qcow2.is_none_or(|qcow2| qcow2.version < 3) {
                bail!("Source lacks bitmap support");
            }
            check_broken(source, settings.skip_broken_bitmaps)?;
        }
    }
    Ok(())
}

/// Refuses bitmaps that were not saved properly, unless they are skipped.
fn check_broken(source: &Opened, skip: bool) -> Result<()> {
    match super::bitmaps_of(source)?
        .iter()
        // QEMU's list of bitmaps is in reverse order.
        .rfind(|bitmap| bitmap.in_use)
    {
        Some(bitmap) if !skip => Err(Hinted {
            message: format!("Cannot copy inconsistent bitmap '{}'", bitmap.name),
            hint: "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it"
                .to_owned(),
        }
        .into()),
        _ => Ok(()),
    }
}

fn check_bitmaps(settings: &Settings, format: Format, is_v2: bool) -> Result<()> {
    if settings.bitmaps && (!format.has_bitmaps() || is_v2) {
        bail!("Format driver '{format}' does not support bitmaps");
    }
    Ok(())
}
