//! Addresses and names for the guests: one dnsmasq for each network that wants it, in the care of a keeper.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::keeper;
use crate::network::{Mode, Network};
use crate::subnet::Ipv4Subnet;

/// Where dnsmasq is. Not looked for in `$PATH`: this program runs as root.
const PROGRAMS: &[&str] = &[
    "/usr/sbin/dnsmasq",
    "/usr/bin/dnsmasq",
    "/usr/local/sbin/dnsmasq",
];

/// A dnsmasq and its keeper: a process that starts it, starts it again if it dies, and ends it when this program ends or is killed.
#[derive(Debug)]
pub(crate) struct Dhcp {
    keeper: Child,
    /// The keeper ends when this closes.
    orders: ChildStdin,
    reports: BufReader<ChildStdout>,
    network: String,
    /// It has said that it could not start dnsmasq.
    failed: bool,
}

impl Dhcp {
    /// Starts the keeper, which waits for [`Dhcp::go`]. To be called before signals are blocked: what it starts must not inherit that.
    pub(crate) fn prepare(network: &Network, subnet: Ipv4Subnet, state: &Path) -> Result<Self> {
        let program = PROGRAMS.iter().find(|path| Path::new(path).exists()).ok_or_else(|| {
            anyhow!("dnsmasq is not installed and {network} needs it for DHCP: install dnsmasq-base, or say dhcp=off")
        })?;
        let mut keeper = Command::new("/proc/self/exe")
            .arg0("bulkhead-net-helper")
            .arg(keeper::FLAG)
            .arg(state.join(format!("{}.dnsmasq", network.name)))
            .arg(program)
            .args(arguments(network, subnet, state))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C is for this program, which then ends the keeper.
            .process_group(0)
            .spawn()
            .context("cannot start the keeper of dnsmasq")?;
        match (keeper.stdin.take(), keeper.stdout.take()) {
            (Some(orders), Some(reports)) => Ok(Dhcp {
                keeper,
                orders,
                reports: BufReader::new(reports),
                network: network.name.clone(),
                failed: false,
            }),
            _ => bail!("the keeper of dnsmasq has no pipes"),
        }
    }

    /// Has dnsmasq started, and waits until it listens.
    pub(crate) fn go(&mut self) -> Result<()> {
        // A keeper that has died says nothing, which is noticed next.
        let _ = self.orders.write_all(keeper::GO.as_bytes());
        let mut report = String::new();
        let read = self.reports.read_line(&mut report);
        self.failed = report != keeper::READY;
        match read {
            Ok(_) if report == keeper::READY => Ok(()),
            Ok(0) => bail!("network {}: the keeper of dnsmasq has died", self.network),
            Ok(_) => bail!("network {}: dnsmasq: {}", self.network, report.trim()),
            Err(e) => Err(e).with_context(|| format!("network {}: dnsmasq", self.network)),
        }
    }

    /// Readable when the keeper, and dnsmasq with it, is gone.
    pub(crate) fn watched(&self) -> BorrowedFd<'_> {
        self.reports.get_ref().as_fd()
    }

    pub(crate) fn network(&self) -> &str {
        &self.network
    }

    /// Ends dnsmasq and its keeper, and waits until they have.
    pub(crate) fn stop(self) -> Result<()> {
        let Dhcp {
            mut keeper,
            orders,
            reports,
            network,
            failed,
        } = self;
        drop(orders);
        drop(reports);
        match keeper.wait() {
            Ok(status) if status.success() || failed => Ok(()),
            Ok(status) => bail!("network {network}: the keeper of dnsmasq ended with {status}"),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e).with_context(|| format!("network {network}: cannot wait for dnsmasq")),
        }
    }
}

/// What dnsmasq is told. It reads no configuration of the host's own.
fn arguments(network: &Network, subnet: Ipv4Subnet, state: &Path) -> Vec<OsString> {
    let (first, last) = subnet.guests();
    let mut arguments: Vec<OsString> = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-hosts",
        "--log-facility=-",
        "--pid-file=",
        // This bridge and nothing else of the host.
        "--bind-interfaces",
        "--except-interface=lo",
        // It is the only one here, so it need not ask around before it offers an address.
        "--dhcp-authoritative",
        "--no-ping",
        "--dhcp-no-override",
        // Names without a dot and private addresses are no business of the world's servers.
        "--domain-needed",
        "--bogus-priv",
    ]
    .iter()
    .map(OsString::from)
    .collect();
    arguments.extend(user().map(OsString::from));
    arguments.push(format!("--interface={}", network.bridge).into());
    arguments.push(format!("--dhcp-range={first},{last},{},1h", subnet.mask()).into());
    arguments.push(format!("--dhcp-lease-max={}", subnet.room().min(65_536)).into());
    if network.mode == Mode::Isolated {
        // No way out: no router, and no names of the world.
        arguments.push("--dhcp-option=option:router".into());
        arguments.push("--no-resolv".into());
    } else {
        arguments.push(format!("--dhcp-option=option:router,{}", subnet.gateway()).into());
    }
    let mut leases = OsString::from(keeper::LEASE_FILE);
    leases.push(state.join(format!("{}.leases", network.name)));
    arguments.push(leases);
    arguments
}

/// The user that dnsmasq becomes: its own, where its package made one.
fn user() -> Option<&'static str> {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    users
        .lines()
        .any(|line| line.starts_with("dnsmasq:"))
        .then_some("--user=dnsmasq")
}
