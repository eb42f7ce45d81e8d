//! Addresses and names for the guests: one dnsmasq for each network that wants it, and the processes that see to it.
//!
//! | process | user | does |
//! |---|---|---|
//! | [`launcher`] and its standby | root, no capability in effect | starts the keeper, and again when it ends |
//! | [`keeper`] | dnsmasq's, no capability in effect | starts dnsmasq, and ends with it |
//! | dnsmasq | its own, no capability at all | answers guests |

mod calls;
pub(crate) mod keeper;
pub(crate) mod launcher;
mod namespaces;
mod privileges;

use std::ffi::OsString;
use std::fs::{DirBuilder, OpenOptions, Permissions, set_permissions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{PermissionsExt, chown, fchown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::network::{Mode, Network};
use crate::state::open_regular;
use crate::subnet::Ipv4Subnet;

/// Where dnsmasq is. Not looked for in `$PATH`: this program runs as root.
const PROGRAMS: &[&str] = &[
    "/usr/sbin/dnsmasq",
    "/usr/bin/dnsmasq",
    "/usr/local/sbin/dnsmasq",
];

/// How long a launcher may take to end, which gives the keeper 4 s.
const PATIENCE: Duration = Duration::from_secs(6);

/// The file of the leases in its folder.
const LEASES: &str = "leases";

/// What the processes between the helper and dnsmasq pass on: this program, the folder of the leases, the user and the group to become,
/// and dnsmasq's command line.
struct Kept<'a> {
    words: &'a [OsString],
    program: &'a Path,
    leases: &'a Path,
    user: u32,
    group: u32,
    dnsmasq: &'a Path,
    arguments: &'a [OsString],
}

impl<'a> Kept<'a> {
    fn parse(words: &'a [OsString]) -> Option<Self> {
        let [program, leases, user, group, dnsmasq, arguments @ ..] = words else {
            return None;
        };
        Some(Kept {
            words,
            program: Path::new(program),
            leases: Path::new(leases),
            user: user.to_str()?.parse().ok()?,
            group: group.to_str()?.parse().ok()?,
            dnsmasq: Path::new(dnsmasq),
            arguments,
        })
    }
}

fn invalid() -> io::Error {
    io::Error::from(ErrorKind::InvalidInput)
}

/// A dnsmasq, and the launcher that sees to it that it runs.
#[derive(Debug)]
pub(crate) struct Dhcp {
    launcher: Child,
    /// The launcher ends when this closes.
    orders: ChildStdin,
    reports: BufReader<ChildStdout>,
    network: String,
}

impl Dhcp {
    /// Starts the launcher, which waits for [`Dhcp::go`]. To be called before signals are blocked: what it starts must not inherit that.
    pub(crate) fn prepare(network: &Network, subnet: Ipv4Subnet, state: &Path) -> Result<Self> {
        let dnsmasq = PROGRAMS.iter().find(|path| Path::new(path).exists()).ok_or_else(|| {
            anyhow!("dnsmasq is not installed and {network} needs it for DHCP: install dnsmasq-base, or say dhcp=off")
        })?;
        let user = User::find()?;
        let leases = state.join(format!("{}.leases", network.name));
        user.make_folder(&leases)?;
        let mut words = vec![
            std::env::current_exe()
                .context("cannot find this program")?
                .into(),
            leases.clone().into(),
            user.user.to_string().into(),
            user.group.to_string().into(),
            dnsmasq.into(),
        ];
        words.extend(arguments(network, subnet, &leases, &user));
        let lock = state.join(format!("{}.dhcp", network.name));
        launcher::prepare(&lock, &words)
            .with_context(|| format!("cannot write {}", lock.display()))?;
        let mut launcher = Command::new("/proc/self/exe")
            .arg0("bulkhead-net-helper")
            .arg(launcher::FLAG)
            .arg(lock)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C is for this program, which then ends the launcher.
            .process_group(0)
            .spawn()
            .context("cannot start the launcher of dnsmasq")?;
        match (launcher.stdin.take(), launcher.stdout.take()) {
            (Some(orders), Some(reports)) => Ok(Dhcp {
                launcher,
                orders,
                reports: BufReader::new(reports),
                network: network.name.clone(),
            }),
            _ => bail!("the launcher of dnsmasq has no pipes"),
        }
    }

    /// Has dnsmasq started, and waits until it listens.
    pub(crate) fn go(&mut self) -> Result<()> {
        // A launcher that has died says nothing, which is noticed next.
        let _ = self.orders.write_all(&[launcher::GO]);
        let mut report = String::new();
        loop {
            report.clear();
            let read = self.reports.read_line(&mut report);
            let network = &self.network;
            match (read, report.strip_prefix(launcher::WARNING)) {
                (Ok(_), Some(warning)) => {
                    bulkhead_process::warn(&format!("network {network}: {}", warning.trim()))
                }
                (Ok(_), None) if report == keeper::READY => return Ok(()),
                (Ok(0), None) => bail!("network {network}: the launcher of dnsmasq has died"),
                (Ok(_), None) => bail!("network {network}: dnsmasq: {}", report.trim()),
                (Err(e), _) => {
                    return Err(e).with_context(|| format!("network {network}: dnsmasq"));
                }
            }
        }
    }

    /// Has dnsmasq started anew, for a bridge that was made anew.
    pub(crate) fn start_again(&mut self) {
        // Never waits: a pipe that is full has the same word in it already.
        let _ = rustix::io::ioctl_fionbio(&self.orders, true);
        let _ = self.orders.write_all(&[launcher::AGAIN]);
    }

    /// Readable when there is something for [`Dhcp::is_dead`] to see.
    pub(crate) fn watched(&self) -> BorrowedFd<'_> {
        self.reports.get_ref().as_fd()
    }

    /// Takes what is reported, once there is something; whether everything that could start dnsmasq is gone, and dnsmasq with it.
    pub(crate) fn is_dead(&mut self) -> bool {
        let length = self.reports.fill_buf().map_or(0, <[u8]>::len);
        self.reports.consume(length);
        length == 0
    }

    pub(crate) fn network(&self) -> &str {
        &self.network
    }

    /// Ends dnsmasq and what started it, and waits until they have, unless one of them is stopped.
    pub(crate) fn stop(self) -> Result<()> {
        let Dhcp {
            mut launcher,
            orders,
            mut reports,
            network,
        } = self;
        drop(orders);
        // The launcher may have been killed, and its standby be at work: the pipe closes when the last of them ends.
        if !closes(reports.get_mut())? {
            bail!(
                "network {network}: the launcher of dnsmasq (process {}) or what it has started has not ended within {} s: it may be stopped",
                launcher.id(),
                PATIENCE.as_secs()
            );
        }
        let waited = launcher.wait().map(drop);
        waited.with_context(|| format!("network {network}: cannot wait for dnsmasq"))
    }
}

/// Reads a pipe to its end, if that comes in time.
fn closes(pipe: &mut ChildStdout) -> io::Result<bool> {
    let until = Instant::now() + PATIENCE;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || launcher::ready([pipe.as_fd()], Some(left))? == [false] {
            return Ok(false);
        }
        match pipe.read(&mut [0; 1024]) {
            Ok(0) => return Ok(true),
            Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e),
            _ => {}
        }
    }
}

/// Who dnsmasq becomes: its own user where its package made one, else nobody.
struct User {
    name: &'static str,
    user: u32,
    group: u32,
}

impl User {
    fn find() -> Result<Self> {
        let users = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        let numbers = |name: &str| {
            users.lines().find_map(|line| {
                let mut fields = line.split(':');
                let is_it = fields.next() == Some(name);
                let (user, group) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
                (is_it && user != 0).then_some((user, group))
            })
        };
        ["dnsmasq", "nobody"]
            .into_iter()
            .find_map(|name| {
                let (user, group) = numbers(name)?;
                Some(User { name, user, group })
            })
            .ok_or_else(|| anyhow!("/etc/passwd has no user dnsmasq or nobody"))
    }

    /// Makes a folder whose files this user may write, and root without further rights remove.
    fn make_folder(&self, path: &Path) -> Result<()> {
        let make = || -> io::Result<()> {
            match DirBuilder::new().create(path) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            let file = path.join(LEASES);
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false);
            // dnsmasq may put anything there, and must not be given what a link leads to.
            let file = open_regular(&file, &mut options)?;
            fchown(&file, Some(self.user), Some(self.group))?;
            file.set_permissions(Permissions::from_mode(0o660))?;
            chown(path, None, Some(self.group))?;
            set_permissions(path, Permissions::from_mode(0o770))
        };
        make().with_context(|| format!("cannot make {}", path.display()))
    }
}

/// What dnsmasq is told. It reads no configuration of the host's own.
fn arguments(network: &Network, subnet: Ipv4Subnet, leases: &Path, user: &User) -> Vec<OsString> {
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
        // Else it would have to tell the kernel the hardware addresses of guests that have no address yet.
        "--dhcp-broadcast",
        // Names without a dot and private addresses are no business of the world's servers.
        "--domain-needed",
        "--bogus-priv",
    ]
    .iter()
    .map(OsString::from)
    .collect();
    arguments.push(format!("--user={}", user.name).into());
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
    let mut file = OsString::from("--dhcp-leasefile=");
    file.push(leases.join(LEASES));
    arguments.push(file);
    arguments
}
