//! From option values to the library's create options; combinations that are not allowed are refused in QEMU's words.

use anyhow::{Result, anyhow, bail, ensure};
use qcow::{CompressionType, CreateOptions, Format, Preallocation};

use super::{FormatOptions, empty_file};

/// The format of that name, if it is supported.
pub(crate) fn known_format(name: &str) -> Option<Format> {
    name.parse().ok()
}

/// The format of a new image; `file` also creates raw images.
pub(crate) fn new_format(name: &str) -> Option<Format> {
    match name {
        FILE => Some(Format::Raw),
        _ => known_format(name),
    }
}

/// The driver `file`.
pub(crate) const FILE: &str = "file";

/// Whether QEMU has a driver of that name. It can be recorded as a backing file's format; opening such a backing file
/// is refused.
pub(crate) fn is_driver(name: &str) -> bool {
    const OTHERS: &str = "blkdebug blklogwrites blkverify bochs cloop compress copy-before-write copy-on-read dmg file \
        ftp ftps gluster host_cdrom host_device http https iscsi iser luks nbd nfs null-aio null-co nvme parallels \
        preallocate qcow qed quorum rbd replication snapshot-access ssh throttle vdi vhdx vmdk vpc vvfat";
    known_format(name).is_some() || OTHERS.split(' ').any(|other| other == name)
}

/// Whether QEMU can read this format and not create it.
pub(crate) fn is_only_read(name: &str) -> bool {
    matches!(name, "bochs" | "cloop" | "dmg")
}

/// The error for a format that cannot be created.
pub(crate) fn not_creatable(name: &str) -> anyhow::Error {
    if is_only_read(name) {
        return anyhow!("Format driver '{name}' does not support image creation");
    }
    anyhow!("Unknown file format '{name}'")
}

/// The create options of an image of `size` bytes.
pub(crate) fn creation(
    format: Format,
    options: &FormatOptions,
    size: u64,
) -> Result<CreateOptions> {
    let size = size
        .checked_next_multiple_of(512)
        .ok_or_else(|| anyhow!("Image size is too large"))?;
    let mut create = CreateOptions::new(format, size);
    create.empty_file = empty_file::by_options(options)?;
    if !format.has_metadata() {
        create.preallocation = raw_preallocation(options.text("preallocation"))?;
        return Ok(create);
    }
    create.version = version(options.text("compat"))?;
    create.preallocation = preallocation(options.text("preallocation"))?;
    create.compression_type = compression(options.text("compression_type"))?;
    create.extended_l2 = options.boolean("extended_l2").unwrap_or(false);
    create.lazy_refcounts = options.boolean("lazy_refcounts").unwrap_or(false);
    create.data_file_raw = options.boolean("data_file_raw").unwrap_or(false);
    create.data_file = options.text("data_file").map(str::to_owned);
    create.backing_file = options.text("backing_file").map(str::to_owned);
    create.backing_format = options
        .text("backing_fmt")
        .map(backing_format)
        .transpose()?;
    create.cluster_size = options.number("cluster_size").unwrap_or(65536);
    create.refcount_bits = refcount_bits(options.number("refcount_bits"))?;
    check(&create)?;
    Ok(create)
}

/// The create options for `measure`, which checks only options that change its result, with messages of its own.
pub(crate) fn measured(options: &FormatOptions) -> Result<CreateOptions> {
    let mut create = CreateOptions::new(Format::Qcow2, 0);
    create.extended_l2 = options.boolean("extended_l2").unwrap_or(false);
    create.cluster_size = options.number("cluster_size").unwrap_or(65536);
    check_cluster_size(create.cluster_size)?;
    check_subclusters(&create)?;
    let mode = options.text("preallocation");
    create.preallocation = preallocation(mode)
        .map_err(|_| anyhow!("invalid parameter value: {}", mode.unwrap_or_default()))?;
    create.version = match options.text("compat") {
        Some("0.10") => 2,
        None | Some("1.1") => 3,
        Some(other) => bail!("Invalid compatibility level: '{other}'"),
    };
    create.refcount_bits = refcount_bits(options.number("refcount_bits"))?;
    check_refcount_bits(&create, "compat=1.1")?;
    create.backing_file = options.text("backing_file").map(str::to_owned);
    Ok(create)
}

fn backing_format(name: &str) -> Result<Format> {
    known_format(name)
        .ok_or_else(|| anyhow!("Parameter 'backing-fmt' does not accept value '{name}'"))
}

/// The version that `compat` means.
pub(crate) fn version(compat: Option<&str>) -> Result<u32> {
    match compat {
        Some("0.10" | "v2") => Ok(2),
        None | Some("1.1" | "v3") => Ok(3),
        Some(other) => bail!("Parameter 'version' does not accept value '{other}'"),
    }
}

/// The mode that `preallocation` means for qcow2.
pub(crate) fn preallocation(mode: Option<&str>) -> Result<Preallocation> {
    Ok(match mode {
        None | Some("off") => Preallocation::Off,
        Some("metadata") => Preallocation::Metadata,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        Some(other) => bail!("Parameter 'preallocation' does not accept value '{other}'"),
    })
}

fn raw_preallocation(mode: Option<&str>) -> Result<Preallocation> {
    let mode = preallocation(mode)
        .map_err(|_| anyhow!("invalid parameter value: {}", mode.unwrap_or_default()))?;
    check_preallocation(Format::Raw, mode)?;
    Ok(mode)
}

/// Refuses a mode that the format does not support.
pub(crate) fn check_preallocation(format: Format, mode: Preallocation) -> Result<()> {
    if !format.has_metadata() && mode == Preallocation::Metadata {
        bail!("Unsupported preallocation mode: metadata");
    }
    Ok(())
}

fn compression(name: Option<&str>) -> Result<CompressionType> {
    Ok(match name {
        None | Some("zlib") => CompressionType::Zlib,
        Some("zstd") => CompressionType::Zstd,
        Some(other) => bail!("Parameter 'compression-type' does not accept value '{other}'"),
    })
}

fn refcount_bits(bits: Option<u64>) -> Result<u32> {
    match bits.unwrap_or(16) {
        bits if bits.is_power_of_two() && bits <= 64 => Ok(bits as u32),
        _ => bail!("Refcount width must be a power of two and may not exceed 64 bits"),
    }
}

fn check_cluster_size(size: u64) -> Result<()> {
    ensure!(
        size.is_power_of_two() && (512..=2 << 20).contains(&size),
        "Cluster size must be a power of two between 512 and 2048k"
    );
    Ok(())
}

fn check_subclusters(create: &CreateOptions) -> Result<()> {
    ensure!(
        !create.extended_l2 || create.cluster_size >= 16384,
        "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes"
    );
    Ok(())
}

/// `instead` is the option that the message suggests.
fn check_refcount_bits(create: &CreateOptions, instead: &str) -> Result<()> {
    ensure!(
        create.version >= 3 || create.refcount_bits == 16,
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use {instead} or greater)"
    );
    Ok(())
}

fn check(create: &CreateOptions) -> Result<()> {
    let needs_v3 = |what: &str, verb: &str, asked: bool| {
        ensure!(
            !asked || create.version >= 3,
            "{what} {verb} compatibility level 1.1 and above (use version=v3 or greater)"
        );
        Ok(())
    };
    check_cluster_size(create.cluster_size)?;
    needs_v3(
        "Extended L2 entries are only",
        "supported with",
        create.extended_l2,
    )?;
    check_subclusters(create)?;
    ensure!(
        create.preallocation == Preallocation::Off
            || create.backing_file.is_none()
            || create.extended_l2,
        "Backing file and preallocation can only be used at the same time if extended_l2 is on"
    );
    ensure!(
        create.backing_format.is_none() || create.backing_file.is_some(),
        "Backing format cannot be used without backing file"
    );
    needs_v3(
        "Lazy refcounts only",
        "supported with",
        create.lazy_refcounts,
    )?;
    check_refcount_bits(create, "version=v3")?;
    ensure!(
        !create.data_file_raw || create.data_file.is_some(),
        "data-file-raw requires data-file"
    );
    ensure!(
        !create.data_file_raw || create.backing_file.is_none(),
        "Backing file and data-file-raw cannot be used at the same time"
    );
    needs_v3(
        "External data files are only",
        "supported with",
        create.data_file.is_some(),
    )?;
    needs_v3(
        "Non-zlib compression type is only",
        "supported with",
        create.compression_type != CompressionType::Zlib,
    )
}
