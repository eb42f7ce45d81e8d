//! DHCP and DNS for the guests: one dnsmasq for each network with `dhcp=on`, and the processes that start it.
//!
//! | process | user | does |
//! |---|---|---|
//! | [`supervisor`] and its standby | root, no capability in effect | starts init, and again when it ends |
//! | [`init`] | dnsmasq's, no capability in effect | starts dnsmasq, and ends with it |
//! | dnsmasq | its own, no capability at all | answers guests |
//!
//! | file | contents |
//! |---|---|
//! | `dnsmasq` | its user, its folder, its command line |
//! | `params`, `lock`, `pipe` | what these processes pass to each other: as arguments, in a file, over pipes |
//! | `namespaces`, `privileges`, `seccomp` | their confinement |

mod dnsmasq;
mod init;
mod leases;
mod lock;
mod namespaces;
mod params;
mod pipe;
mod privileges;
mod seccomp;
mod supervisor;

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};

use crate::network::Network;
use crate::subnet::Ipv4Subnet;
use dnsmasq::User;
pub(crate) use leases::addresses;
use lock::LockFile;
use params::Role;
use pipe::{SUPERVISOR_STOP_TIMEOUT, poll_readable};

/// Runs one of the processes around dnsmasq, if the command line asks for one; `None` if it is the helper's.
pub(crate) fn run_role(mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let role = Role::of(&args.next()?)?;
    let args: Vec<_> = args.collect();
    Some(match role {
        Role::Supervisor => report(supervisor::run(&args)),
        Role::Standby => report(supervisor::run_standby(&args)),
        Role::Init => report(init::run(&args)),
        Role::Dnsmasq => init::exec_dnsmasq(&args),
    })
}

/// Reports an error to the process that started this one.
fn report(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stdout(), "{error}");
            ExitCode::FAILURE
        }
    }
}

/// The DHCP and DNS of a network: its supervisor, which keeps a dnsmasq running.
#[derive(Debug)]
pub(crate) struct Dhcp {
    supervisor: Child,
    /// The supervisor stops when this closes.
    commands: ChildStdin,
    reports: BufReader<ChildStdout>,
    network: String,
}

impl Dhcp {
    /// Starts the supervisor, which waits for [`Dhcp::start`].
    pub(crate) fn prepare(network: &Network, subnet: Ipv4Subnet, state: &Path) -> Result<Self> {
        let dnsmasq = dnsmasq::program().ok_or_else(|| {
            anyhow!("dnsmasq is not installed and {network} needs it for DHCP: install dnsmasq-base, or say dhcp=off")
        })?;
        let user = User::find()?;
        let leases = leases::folder(network, state);
        user.create_lease_folder(&leases)?;
        let mut params = vec![
            std::env::current_exe()
                .context("cannot find this program")?
                .into(),
            leases.clone().into(),
            user.uid.to_string().into(),
            user.gid.to_string().into(),
            dnsmasq.into(),
        ];
        params.extend(dnsmasq::arguments(network, subnet, &leases, &user));
        let lock = state.join(format!("{}.dhcp", network.name));
        LockFile::open(&lock)
            .and_then(|file| file.write_params(&params))
            .with_context(|| format!("cannot write {}", lock.display()))?;
        let mut supervisor = Command::new("/proc/self/exe")
            .arg0("bulkhead-net-helper")
            .arg(Role::Supervisor.flag())
            .arg(lock)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A terminal's Ctrl-C signals the helper only, which then stops the supervisor.
            .process_group(0)
            .spawn()
            .context("cannot start the supervisor of dnsmasq")?;
        match (supervisor.stdin.take(), supervisor.stdout.take()) {
            (Some(commands), Some(reports)) => Ok(Dhcp {
                supervisor,
                commands,
                reports: BufReader::new(reports),
                network: network.name.clone(),
            }),
            _ => bail!("the supervisor of dnsmasq has no pipes"),
        }
    }

    /// Starts dnsmasq, and waits until it listens.
    pub(crate) fn start(&mut self) -> Result<()> {
        // A supervisor that has died is noticed when its report is read.
        let _ = self.commands.write_all(&[pipe::START]);
        let mut report = String::new();
        loop {
            report.clear();
            let read = self.reports.read_line(&mut report);
            let network = &self.network;
            match (read, report.strip_prefix(pipe::WARNING)) {
                (Ok(_), Some(warning)) => {
                    bulkhead_process::warn(&format!("network {network}: {}", warning.trim()))
                }
                (Ok(_), None) if report == pipe::READY => return Ok(()),
                (Ok(0), None) => bail!("network {network}: the supervisor of dnsmasq has died"),
                (Ok(_), None) => bail!("network {network}: dnsmasq: {}", report.trim()),
                (Err(e), _) => {
                    return Err(e).with_context(|| format!("network {network}: dnsmasq"));
                }
            }
        }
    }

    /// Restarts dnsmasq, for a bridge that has been created again. Does not wait for it.
    pub(crate) fn restart(&mut self) {
        // When the pipe is full, the command is in it already.
        let _ = rustix::io::ioctl_fionbio(&self.commands, true);
        let _ = self.commands.write_all(&[pipe::RESTART]);
    }

    /// Readable when [`Dhcp::is_dead`] has a report to read.
    pub(crate) fn watched(&self) -> BorrowedFd<'_> {
        self.reports.get_ref().as_fd()
    }

    /// Reads the reports that are there. Returns whether every process that could start dnsmasq is dead, and dnsmasq
    /// with them.
    pub(crate) fn is_dead(&mut self) -> bool {
        let length = self.reports.fill_buf().map_or(0, <[u8]>::len);
        self.reports.consume(length);
        length == 0
    }

    pub(crate) fn network(&self) -> &str {
        &self.network
    }

    /// Stops dnsmasq and the processes that started it, and waits for their end, unless one of them is stopped by a
    /// signal.
    pub(crate) fn stop(self) -> Result<()> {
        let Dhcp {
            mut supervisor,
            commands,
            mut reports,
            network,
        } = self;
        drop(commands);
        // The supervisor may have been killed and its standby be in charge: the pipe closes when the last of them ends.
        if !closes_in_time(reports.get_mut())? {
            bail!(
                "network {network}: the supervisor of dnsmasq (process {}) or what it has started \
                 has not ended within {} s: it may be stopped",
                supervisor.id(),
                SUPERVISOR_STOP_TIMEOUT.as_secs()
            );
        }
        let waited = supervisor.wait().map(drop);
        waited.with_context(|| format!("network {network}: cannot wait for dnsmasq"))
    }
}

/// Reads a pipe to its end. Returns false if the end does not come in time.
fn closes_in_time(pipe: &mut ChildStdout) -> io::Result<bool> {
    let deadline = Instant::now() + SUPERVISOR_STOP_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || poll_readable([pipe.as_fd()], Some(left))? == [false] {
            return Ok(false);
        }
        match pipe.read(&mut [0; 1024]) {
            Ok(0) => return Ok(true),
            Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e),
            _ => {}
        }
    }
}
