//! Where the TAP device comes from: a name, inherited descriptors, or `bulkhead-net-helper`.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use bulkhead_mac::MacAddr;
use bulkhead_net_protocol::{Client, Connection, TapRequest, default_socket_path, start_command};
use bulkhead_process::usage;
use tap::{ErrorKind, InterfaceName, Options, Tap};

use crate::Args;

/// The MTU that a driver assumes without `VIRTIO_NET_F_MTU`.
const USUAL_MTU: u32 = 1500;

/// A TAP device and its properties that the guest sees.
#[derive(Debug)]
pub(crate) struct Attachment {
    /// One for each pair of queues.
    pub(crate) taps: Vec<Tap>,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) mtu: Option<u16>,
}

/// Opens the TAP device that the command line names. The connection is its lease, if it comes from the helper.
pub(crate) fn open(args: &Args) -> Result<(Attachment, Option<Connection>)> {
    let source = &args.source;
    if let Some(network) = &source.network {
        return lease(args, network);
    }
    let taps = match &source.tap {
        Some(name) => by_name(name, args.num_queues.unwrap_or(1))?,
        None if !source.tap_fd.is_empty() => inherited(args)?,
        None => {
            return Err(usage(
                "no TAP device is given: --tap NAME, --tap-fd N or --network NAME",
            ));
        }
    };
    let mtu = args.mtu.or_else(|| unusual_mtu(&taps));
    Ok((
        Attachment {
            taps,
            mac: args.mac,
            mtu,
        },
        None,
    ))
}

fn lease(args: &Args, network: &str) -> Result<(Attachment, Option<Connection>)> {
    let path = args
        .helper_socket
        .clone()
        .unwrap_or_else(default_socket_path);
    let queues = args.num_queues.unwrap_or(1);
    let request = TapRequest {
        network: network.to_owned(),
        mac: args.mac,
        queues,
        mtu: args.mtu,
    };
    let lease = Client::connect(&path).and_then(|client| client.request_tap(&request));
    let lease = lease.map_err(|error| from_helper(error, &path, network))?;
    let taps = lease
        .queues
        .into_iter()
        .map(Tap::from_fd)
        .collect::<Result<_, _>>();
    let taps = taps.context("bulkhead-net-helper gave something else than a TAP device")?;
    let mtu = args
        .mtu
        .or((u32::from(lease.info.mtu) != USUAL_MTU).then_some(lease.info.mtu));
    Ok((
        Attachment {
            taps,
            mac: Some(lease.info.mac),
            mtu,
        },
        Some(lease.connection),
    ))
}

/// Adds to the error what the user can do: how a helper is started if none runs, or where something else than a helper
/// has answered.
fn from_helper(error: bulkhead_net_protocol::Error, path: &Path, network: &str) -> anyhow::Error {
    use bulkhead_net_protocol::ErrorKind::{NotRunning, Protocol};
    match error.kind() {
        NotRunning => anyhow::anyhow!(
            "{error}; start it as root ({}), or name the socket of another with --helper-socket",
            start_command(path, [network])
        ),
        Protocol => anyhow::Error::from(error).context(format!(
            "{}, where bulkhead-net-helper should listen",
            path.display()
        )),
        _ => error.into(),
    }
}

fn by_name(name: &InterfaceName, pairs: u16) -> Result<Vec<Tap>> {
    let mut options = Options::VNET_HDR;
    options.set(Options::MULTI_QUEUE, pairs > 1);
    let mut first = Tap::open(name, options);
    if pairs == 1
        && first
            .as_ref()
            .is_err_and(|e| e.kind() == ErrorKind::Mismatch)
    {
        // The device may have been made for several queues; one of them is enough.
        first = Tap::open(name, options | Options::MULTI_QUEUE).or(first);
    }
    let mut taps = vec![first?];
    for _ in 1..pairs {
        let another = taps.first().map(Tap::another_queue).transpose()?;
        taps.extend(another);
    }
    Ok(taps)
}

fn inherited(args: &Args) -> Result<Vec<Tap>> {
    let numbers = &args.source.tap_fd;
    if args
        .num_queues
        .is_some_and(|pairs| usize::from(pairs) != numbers.len())
    {
        return Err(usage(format!(
            "--tap-fd names {} descriptors; --num-queues must be the same",
            numbers.len()
        )));
    }
    let mut taps = Vec::new();
    for &number in numbers {
        let fd =
            bulkhead_daemon::inherited_fd(number).with_context(|| format!("--tap-fd {number}"))?;
        taps.push(Tap::from_fd(fd).with_context(|| format!("--tap-fd {number}"))?);
    }
    let first = taps.first().map(Tap::name);
    match taps.iter().find(|tap| Some(tap.name()) != first) {
        Some(other) => Err(anyhow!(
            "--tap-fd: {} is another TAP device than the first",
            other.name()
        )),
        None => Ok(taps),
    }
}

/// The interface's MTU if the guest would not assume it. `None` if it cannot be read, as in another network namespace.
fn unusual_mtu(taps: &[Tap]) -> Option<u16> {
    let mtu = taps.first()?.mtu().ok().filter(|&mtu| mtu != USUAL_MTU)?;
    u16::try_from(mtu).ok()
}
