//! `bulkhead-block`: a vhost-user-blk server for raw and qcow2 images.
//!
//! [`request`] parses a descriptor chain into a plain `Request`. [`in_flight`] has the requests of one queue that are
//! in flight, and decides which way each goes: by the queue's io_uring ([`operations`]) if the image knows without I/O
//! in which files the data is, else to the threads of [`pool`], which execute it ([`execute`]) and put it on the
//! queue's list of [`completions`]. [`device`] joins that to the rings, each of which has a thread of its own if there
//! are several.
//!
//! It may touch the image files it was given, which it opens before it confines itself, and the guest's memory. It must
//! not depend on KVM, networking, or the monitor.

#![forbid(unsafe_code)]

mod completions;
mod config;
mod confine;
mod device;
mod disk_file;
mod execute;
mod in_flight;
mod memory;
mod nowait;
mod operations;
mod pool;
mod request;
mod shared;
mod slot;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use bulkhead_daemon::{Daemon, DaemonArgs, DeviceType};
use bulkhead_process::usage;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Parser, ValueEnum};
use qcow::Format;

use device::Options;
use disk_file::DiskFile;

/// Serves a raw or qcow2 image as a vhost-user block device.
#[derive(Debug, Parser)]
#[command(name = "bulkhead-block", version)]
struct Args {
    #[command(flatten)]
    daemon: DaemonArgs,

    /// Serve this image file or block device
    #[arg(long, value_name = "PATH")]
    blk_file: Option<PathBuf>,

    /// The format of the image. It must be given, because guessing it would let a guest choose it
    #[arg(long, value_parser = formats())]
    format: Option<Format>,

    /// Open the image for reading only, and refuse the guest's writes
    #[arg(long)]
    read_only: bool,

    /// Also allow backing and data files in this folder and the folders in it. The image's own folder is always allowed
    #[arg(long, value_name = "FOLDER")]
    allow_path: Vec<PathBuf>,

    /// The serial number that the guest sees, up to 20 bytes
    #[arg(long, value_name = "STRING", default_value = "")]
    serial: String,

    /// Move all data by io_uring, or by threads; by default the faster one is chosen for each request
    #[arg(long, value_enum)]
    aio: Option<Aio>,

    /// The number of request queues
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    num_queues: u16,
}

/// The values of `--format`.
fn formats() -> impl TypedValueParser<Value = Format> {
    let formats = Format::ALL;
    let values = formats.map(|format| PossibleValue::new(format.name()).help(format.summary()));
    PossibleValuesParser::new(values).try_map(|name| name.parse::<Format>())
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Aio {
    /// Threads that make read and write system calls
    Threads,
    /// Linux's io_uring
    #[value(name = "io_uring")]
    IoUring,
}

fn main() -> ExitCode {
    bulkhead_process::main::<Args>(run)
}

fn run(args: Args) -> Result<ExitCode> {
    if args.daemon.print_capabilities {
        bulkhead_daemon::print_capabilities(DeviceType::Block, &["read-only", "blk-file"])?;
        return Ok(ExitCode::SUCCESS);
    }
    let options = options(&args)?;
    let disk = DiskFile::named(&args)?;
    let mut daemon = Daemon::new(&args.daemon)?;
    let broker = disk.broker()?;
    let serving = confine::confinement();
    // A raw image needs no parsing, and a block device has no folder of its own to open files in.
    let staged = disk.format.has_metadata() && disk.path.is_file();
    let mut queues = if staged {
        daemon.begin(serving, disk.opening()?)?;
        device::queues(disk.open()?, &options)?
    } else {
        let queues = device::queues(disk.open()?, &options)?;
        daemon.confine(serving)?;
        queues
    };
    let served = daemon.run(&mut queues);
    // The image is closed whatever became of the frontend. If both fail, the first error is the one to report.
    let closed = device::close(queues);
    if let (Ok(()), Some(broker)) = (&closed, broker) {
        broker.end();
    }
    served?;
    closed?;
    Ok(ExitCode::SUCCESS)
}

fn options(args: &Args) -> Result<Options> {
    if args.serial.len() > request::SERIAL_LENGTH {
        let length = args.serial.len();
        let most = request::SERIAL_LENGTH;
        return Err(usage(format!(
            "--serial has {length} bytes, {most} are possible"
        )));
    }
    Ok(Options {
        serial: args.serial.clone(),
        queues: args.num_queues,
        aio: args.aio,
    })
}
