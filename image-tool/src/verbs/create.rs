//! `create`: creates an empty image.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use clap::Command;
use qcow::Format;

use crate::command_line::format_options::{self, Encryption, FormatOptions};
use crate::command_line::getopt::Matches;
use crate::command_line::keyval;
use crate::command_line::manual::{DONE_OR_FAILED, Manual};
use crate::command_line::options;
use crate::command_line::size::MAX_DISK;
use crate::command_line::source::{Source, local_path};
use crate::open::{self, Opening};
use crate::output;
use crate::output::errors::{describe, describe_os};
use crate::output::progress::Progress;
use crate::output::report::{Hinted, Usage};
use crate::signals::Signals;
use crate::target::Target;

pub(crate) const NAME: &str = "create";

pub(super) const MANUAL: Manual = Manual {
    about: "Make a new image without content",
    description: "Makes an empty disk, or with -b an overlay that shows the disk of its backing file until it is \
        written.",
    statuses: DONE_OR_FAILED,
    examples: &[
        (
            "A qcow2 image for a disk of 20 GiB",
            "image-tool create -f qcow2 new.qcow2 20G",
        ),
        (
            "An overlay, which leaves base.qcow2 as it is",
            "image-tool create -f qcow2 -b base.qcow2 -F qcow2 guest.qcow2",
        ),
        (
            "A raw image whose space is reserved",
            "image-tool create -f raw -o preallocation=falloc new.raw 8M",
        ),
    ],
};

pub(crate) fn command() -> Command {
    options::command(NAME, &MANUAL)
        .arg(options::quiet())
        .arg(options::value(
            "format",
            'f',
            "FMT",
            "format of the new image (default: raw)",
        ))
        .arg(options::object())
        .arg(options::value(
            "options",
            'o',
            "FMT_OPTS",
            "options of the format ('-o help' lists them)",
        ))
        .arg(options::value(
            "backing",
            'b',
            "BACKING_FILENAME",
            "make the image an overlay on this one",
        ))
        .arg(options::value(
            "backing-format",
            'F',
            "BACKING_FMT",
            "format of the backing file",
        ))
        .arg(options::flag(
            "backing-unsafe",
            'u',
            "do not check that the backing file can be opened",
        ))
        .arg(options::operand("FILENAME", "file to create or replace"))
        .arg(options::operand(
            "SIZE",
            "size of the disk (default: that of the backing file)",
        ))
}

pub(crate) fn run(matches: &Matches) -> Result<ExitCode> {
    let format_name = matches.text("format").unwrap_or_else(|| "raw".to_owned());
    let list = format_options::joined(&matches.texts("options"))?;
    let secrets = options::secrets(matches)?;
    let name = matches.operands().first();
    if list.as_deref().is_some_and(keyval::asks_for_help) {
        output::line(&help(&format_name, name.is_some())?);
        return Ok(ExitCode::SUCCESS);
    }
    let name = name.ok_or_else(|| Usage::of(NAME, "Expecting image file name"))?;
    let size = match matches.operands().get(1) {
        Some(size) => Some(options::size("image size", &size.to_string_lossy())?),
        None => None,
    };
    if let Some(extra) = matches.operands().get(2) {
        return Err(Usage::of(
            NAME,
            format!("Unexpected argument: {}", extra.to_string_lossy()),
        ));
    }
    let filename = name.to_string_lossy();
    let request = Request {
        matches,
        format_name: &format_name,
        list: list.as_deref(),
        name,
        filename: &filename,
        size,
        secrets: &secrets,
    };
    create(&request).map_err(|error| match error.downcast::<Hinted>() {
        Ok(hinted) => Hinted {
            message: format!("{filename}: {}", hinted.message),
            ..hinted
        }
        .into(),
        Err(error) => anyhow!("{filename}: {error}"),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What `-o help` prints: options of the format, and with a file name those of the file, too.
pub(crate) fn help(format_name: &str, on_file: bool) -> Result<String> {
    let Some(format) = format_options::new_format(format_name) else {
        return Err(format_options::not_creatable(format_name));
    };
    // Without a file name, the options of the file are left out.
    let known = if on_file || format_name == format_options::FILE {
        format_options::creatable(format)
    } else {
        format_options::own(format)
    };
    let known = format_options::explain(&known);
    let text = if on_file {
        format!("Supported options:\n{known}")
    } else {
        format!(
            "Supported {format_name} options:\n{known}\nThe protocol level may support further options.\n\
             Specify the target filename to include those options."
        )
    };
    Ok(text.trim_end().to_owned())
}

/// The values of the command line.
struct Request<'a> {
    matches: &'a Matches,
    format_name: &'a str,
    list: Option<&'a str>,
    name: &'a OsStr,
    /// The name, for messages.
    filename: &'a str,
    size: Option<u64>,
    secrets: &'a [String],
}

fn create(request: &Request<'_>) -> Result<()> {
    let Request {
        matches,
        format_name,
        list,
        name,
        filename,
        size,
        secrets,
    } = *request;
    let format = format_options::new_format(format_name)
        .ok_or_else(|| format_options::not_creatable(format_name))?;
    let path = local_path(name)?;
    let mut options = FormatOptions::new(format_options::creatable(format));
    if let Some(list) = list {
        options.parse(list)?;
    }
    match (options.number("size"), size) {
        (Some(_), Some(_)) => bail!("The image size must be specified only once"),
        (None, Some(size)) => options.set_number("size", size)?,
        _ => {}
    }
    set_backing(
        &mut options,
        format,
        matches.text("backing"),
        matches.text("backing-format"),
    )?;
    if let Some(backing) = options.text("backing_file").map(str::to_owned) {
        check_backing(
            &mut options,
            filename,
            &path,
            &backing,
            matches.flag("backing-unsafe"),
        )?;
    }
    let Some(size) = options.number("size").filter(|&size| size != u64::MAX) else {
        bail!("Image creation needs a size parameter")
    };
    output::announce(
        matches.flag("quiet"),
        &format!(
            "Formatting '{filename}', fmt={format_name}{}",
            options.announce()
        ),
    );
    let mut create = format_options::creation(format, &options, size)?;
    create.aes = match format_options::encryption(&options)? {
        None => false,
        Some(Encryption::Aes) => {
            let unexpected = options.names().find(|name| {
                name.starts_with("encrypt.")
                    && !matches!(*name, "encrypt.format" | "encrypt.key-secret")
            });
            if let Some(name) = unexpected {
                bail!("Parameter '{name}' is unexpected");
            }
            format_options::check_secret(&options, secrets)?;
            true
        }
        Some(Encryption::Luks) => return Err(format_options::not_encrypting(&options)),
    };
    if format.has_metadata() && i64::try_from(create.size).is_err() {
        bail!("Could not resize image: Image size cannot be negative");
    }
    let sectors_end = create.size.next_multiple_of(512);
    if format.has_metadata() && sectors_end > MAX_DISK {
        bail!("Could not resize image: offset({sectors_end}) exceeds maximum({MAX_DISK})");
    }
    let signals = Signals::block()?;
    let mut target = Target::prepare(&path, None)?;
    signals.handle_in_thread(Progress::new(false, 0.0).into())?;
    target
        .create(&create)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EFBIG) => anyhow!("{}", too_large(format)),
            _ => anyhow!("{}", describe_create_error(&error, format, &target)),
        })?;
    target.check_written()?;
    target.finish()
}

/// QEMU's message for an image that is too long for a file, or for the tables of the format.
fn too_large(format: Format) -> String {
    let hint = match format.has_metadata() {
        true => " (try using a larger cluster size)",
        false => "",
    };
    format!("The image size is too large for file format '{format}'{hint}")
}

/// The message for an error of creating the image that a command fills.
pub(crate) fn describe_create_error(
    error: &qcow::Error,
    format: Format,
    target: &Target,
) -> String {
    if !format.has_metadata() {
        return match error.raw_os_error() {
            Some(number @ (libc::EFBIG | libc::EINVAL)) => {
                let why = describe_os(&io::Error::from_raw_os_error(number));
                format!("Could not resize file: {why}")
            }
            None if target.is_device() => "Cannot grow device files".to_owned(),
            _ => describe(error, target.path()),
        };
    }
    match (error.kind(), error.raw_os_error()) {
        (qcow::ErrorKind::TooLarge, _) => too_large(format),
        (_, Some(number @ libc::EFBIG)) => {
            let why = describe_os(&io::Error::from_raw_os_error(number));
            format!("Could not resize image: {why}")
        }
        _ => describe(error, target.path()),
    }
}

/// Sets `-b` and `-F`, which replace `-o backing_file` and `-o backing_fmt`.
pub(crate) fn set_backing(
    options: &mut FormatOptions,
    format: Format,
    file: Option<String>,
    backing_format: Option<String>,
) -> Result<()> {
    if let Some(file) = file {
        if !options.knows("backing_file") {
            bail!("Backing file not supported for file format '{format}'");
        }
        options.set("backing_file", &file)?;
    }
    if let Some(backing_format) = backing_format {
        if !options.knows("backing_fmt") {
            bail!("Backing file format not supported for file format '{format}'");
        }
        options.set("backing_fmt", &backing_format)?;
    }
    Ok(())
}

/// Opens the backing file to check it, and takes the size from it if none was given.
fn check_backing(
    options: &mut FormatOptions,
    filename: &str,
    path: &Path,
    backing: &str,
    unsafe_: bool,
) -> Result<()> {
    if backing == filename {
        bail!("Error: Trying to create an image with the same filename as the backing file");
    }
    if backing.is_empty() {
        bail!("Expected backing file name, got empty string");
    }
    let format = options.text("backing_fmt").map(str::to_owned);
    if unsafe_ {
        return match format {
            Some(_) => Ok(()),
            None => bail!("Backing file specified without backing format"),
        };
    }
    let source = Source::beside(path, backing, format.as_deref())?;
    let opened = open::open_unnamed(
        &source,
        &Opening {
            share: true,
            ..Opening::default()
        },
    )
    .map_err(|error| Hinted {
        message: error.to_string(),
        hint: "Could not open backing image.".to_owned(),
    })?;
    if format.is_none() {
        return Err(Hinted {
            message: "Backing file specified without backing format".to_owned(),
            hint: format!("Detected format of {}.", opened.image.format()),
        }
        .into());
    }
    if options.number("size").is_none() {
        options.set_number("size", opened.disk().size())?;
    }
    Ok(())
}
