//! `bulkhead-net`: a vhost-user-net server on a TAP device.
//!
//! Frames go between the TAP device and the guest's buffers without a copy: [`receive`] reads them into the buffers,
//! [`transmit`] writes them from there, [`device`] joins the two to the rings, and [`control`] handles the control
//! queue. [`features`] maps virtio-net's offloads to those of the TAP device, and [`source`] opens the TAP device.
//!
//! It may touch one TAP descriptor per queue pair, which it has before it confines itself, and the guest's memory. It
//! must never touch /dev/kvm or a file, and it depends on `bulkhead-daemon`, `bulkhead-net-protocol`,
//! `bulkhead-process` and `tap`.

#![forbid(unsafe_code)]

mod confine;
mod control;
mod device;
mod features;
mod receive;
mod source;
mod transmit;

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use bulkhead_daemon::{Daemon, DaemonArgs, DeviceType};
use bulkhead_mac::MacAddr;
use bulkhead_net_protocol::MAX_QUEUES;
use clap::Parser;
use tap::InterfaceName;

use device::Net;

/// Serves a TAP device as a vhost-user network device.
#[derive(Debug, Parser)]
#[command(name = "bulkhead-net", version)]
struct Args {
    #[command(flatten)]
    daemon: DaemonArgs,

    #[command(flatten)]
    source: Source,

    /// The socket of bulkhead-net-helper [default: /run/bulkhead/net-helper.sock, for users in
    /// $XDG_RUNTIME_DIR/bulkhead]
    #[arg(long, value_name = "PATH", requires = "network")]
    helper_socket: Option<PathBuf>,

    /// The MAC address of the guest's network card
    #[arg(long)]
    mac: Option<MacAddr>,

    /// The MTU: the most bytes of a frame's payload
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(68..=65521))]
    mtu: Option<u16>,

    /// The number of queue pairs [default: 1, or the number of descriptors of --tap-fd]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_QUEUES)))]
    num_queues: Option<u16>,
}

/// Where the TAP device comes from.
#[derive(Clone, Debug, clap::Args)]
#[group(required = false, multiple = false)]
struct Source {
    /// Use the TAP device of this name; make it if it does not exist
    #[arg(long, value_name = "NAME")]
    tap: Option<InterfaceName>,

    /// Use these inherited descriptors of a TAP device, one for each queue pair
    #[arg(long, value_name = "N[,N…]", value_delimiter = ',')]
    tap_fd: Vec<RawFd>,

    /// Get a TAP device on this network from bulkhead-net-helper
    #[arg(long)]
    network: Option<String>,
}

fn main() -> ExitCode {
    bulkhead_process::main::<Args>(run)
}

fn run(args: Args) -> Result<ExitCode> {
    if args.daemon.print_capabilities {
        bulkhead_daemon::print_capabilities(DeviceType::Net, &[])?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut daemon = Daemon::new(&args.daemon)?;
    let (attachment, lease) = source::open(&args)?;
    if let Some(lease) = lease {
        // The helper takes the TAP device back when this connection closes. The broker has it, so that an intruder in
        // this process cannot reach the helper.
        daemon.keep(lease.into())?;
    }
    let device = Net::new(attachment).context("cannot make the network device")?;
    daemon.confine(confine::confinement())?;
    daemon.run(&mut [device])?;
    Ok(ExitCode::SUCCESS)
}
