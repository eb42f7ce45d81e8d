//! The options of `convert`.

use anyhow::{Result, anyhow, bail};

use crate::command_line::cache::Cache;
use crate::command_line::format_options;
use crate::command_line::getopt::Matches;
use crate::command_line::options;
use crate::copy::Salvage;
use crate::copy::workers;
use crate::copy::zero::{SECTOR, Sparse};
use crate::open::snapshot_param::SnapshotParam;

/// The longest piece of data: long enough for few system calls, short enough for the processor's cache.
pub(crate) const PIECE: u64 = 1 << 20;

/// The largest `-S`.
const MAX_SPARSE: u64 = 16 << 20;

/// The largest `-m`.
const MAX_PARALLEL: u64 = 16;

/// The values of the options.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) progress: bool,
    pub(crate) source_format: Option<String>,
    pub(crate) source_image_opts: bool,
    pub(crate) snapshot: Option<SnapshotParam>,
    pub(crate) share: bool,
    pub(crate) format: String,
    pub(crate) target_image_opts: bool,
    pub(crate) options: Option<String>,
    pub(crate) compress: bool,
    pub(crate) backing: Option<String>,
    pub(crate) backing_format: Option<String>,
    pub(crate) no_create: bool,
    pub(crate) target_is_zero: bool,
    pub(crate) sparse: Option<Sparse>,
    pub(crate) bitmaps: bool,
    pub(crate) skip_broken_bitmaps: bool,
    pub(crate) rate: Option<u64>,
    pub(crate) parallel: u64,
    pub(crate) salvage: Option<Salvage>,
    pub(crate) any_order: bool,
    pub(crate) copy_range: bool,
    source_cache: Option<String>,
    target_cache: Option<String>,
}

impl Settings {
    pub(crate) fn read(matches: &Matches) -> Result<Self> {
        let quiet = matches.flag("quiet");
        let settings = Self {
            progress: matches.flag("progress") && !quiet,
            source_format: matches.text("source-format"),
            source_image_opts: matches.flag("source-image-opts"),
            snapshot: matches
                .text("snapshot")
                .map(|text| SnapshotParam::parse(&text))
                .transpose()?,
            share: matches.flag("force-share"),
            format: matches
                .text("output-format")
                .unwrap_or_else(|| "raw".to_owned()),
            target_image_opts: matches.flag("target-image-opts"),
            options: format_options::joined(&matches.texts("options"))?,
            compress: matches.flag("compress"),
            backing: matches.text("backing"),
            backing_format: matches.text("backing-format"),
            no_create: matches.flag("no-create"),
            target_is_zero: matches.flag("target-is-zero"),
            sparse: sparse(matches.text("sparse-size").as_deref())?,
            bitmaps: matches.flag("bitmaps"),
            skip_broken_bitmaps: matches.flag("skip-broken-bitmaps"),
            rate: matches
                .text("rate")
                .map(|text| options::size("rate limit", &text))
                .transpose()?,
            parallel: parallel(matches.text("parallel").as_deref())?,
            salvage: matches.flag("salvage").then_some(Salvage { quiet }),
            any_order: matches.flag("oob-writes"),
            copy_range: matches.flag("copy-range-offloading"),
            source_cache: matches.text("source-cache"),
            target_cache: matches.text("output-cache"),
        };
        settings.check(matches.flag("sparse-size"), matches.flag("output-format"))?;
        Ok(settings)
    }

    /// Refuses options that do not go together.
    fn check(&self, explicit_sparse: bool, explicit_format: bool) -> Result<()> {
        if self.skip_broken_bitmaps && !self.bitmaps {
            bail!("Use of --skip-broken-bitmaps requires --bitmaps");
        }
        if self.copy_range && self.compress {
            bail!("Cannot enable copy offloading when -c is used");
        }
        if self.copy_range && explicit_sparse {
            bail!("Cannot enable copy offloading when -S is used");
        }
        if self.copy_range && self.salvage.is_some() {
            bail!("Cannot use copy offloading in salvaging mode");
        }
        if self.target_image_opts && !self.no_create {
            bail!("--target-image-opts requires use of -n flag");
        }
        if self.target_image_opts && explicit_format {
            bail!("--image-opts and --format are mutually exclusive");
        }
        if self.no_create && self.options.is_some() {
            bail!("-o has no effect when skipping image creation");
        }
        if self.target_is_zero && !self.no_create {
            bail!("--target-is-zero requires use of -n flag");
        }
        Ok(())
    }

    /// Refuses unknown cache modes. As in qemu-img, a wrong number of operands is reported first.
    pub(crate) fn check_caches(&self) -> Result<()> {
        if let Some(mode) = self
            .source_cache
            .as_deref()
            .filter(|mode| Cache::parse(mode).is_none())
        {
            bail!("Invalid source cache option: {mode}");
        }
        self.target_cache().map(drop)
    }

    /// Whether the target must be durable in the end.
    pub(crate) fn target_cache(&self) -> Result<Cache> {
        match self.target_cache.as_deref() {
            None => Ok(Cache::Unsafe),
            Some(mode) => Cache::parse(mode).ok_or_else(|| anyhow!("Invalid cache option: {mode}")),
        }
    }

    /// The number of threads: one for each processor, at most `-m`.
    pub(crate) fn threads(&self) -> usize {
        workers::processors().min(usize::try_from(self.parallel).unwrap_or(1))
    }
}

fn sparse(size: Option<&str>) -> Result<Option<Sparse>> {
    const WHAT: &str = "buffer size for sparse output";
    let bytes = size.map_or(Ok(4096), |size| options::size(WHAT, size))?;
    if bytes % SECTOR as u64 != 0 || bytes > MAX_SPARSE {
        bail!(
            "Invalid {WHAT} specified. Valid sizes are multiples of {SECTOR} up to {MAX_SPARSE}. Select 0 to disable \
             sparse detection (fully allocates output)."
        );
    }
    let min = usize::try_from(bytes)? / SECTOR;
    let alignment = if min == 0 { 1 } else { 1 << min.ilog2() };
    Ok((min > 0).then_some(Sparse { min, alignment }))
}

fn parallel(number: Option<&str>) -> Result<u64> {
    number.map_or(Ok(8), |number| {
        options::number("number of coroutines", number, 1, MAX_PARALLEL)
    })
}
