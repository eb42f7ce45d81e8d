//! dnsmasq itself: where it is installed, the user that it runs as, the folder of its leases, and its command line.

use std::ffi::OsString;
use std::fs::{DirBuilder, OpenOptions, Permissions, set_permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{PermissionsExt, chown, fchown};
use std::path::Path;

use anyhow::{Context, Result, anyhow};

use crate::network::Network;
use crate::state::open_regular;
use crate::subnet::Ipv4Subnet;

/// Where dnsmasq may be installed. `$PATH` is not searched, since this program runs as root.
const PROGRAMS: &[&str] = &[
    "/usr/sbin/dnsmasq",
    "/usr/bin/dnsmasq",
    "/usr/local/sbin/dnsmasq",
];

/// The file of the leases in its folder.
pub(super) const LEASES: &str = "leases";

/// The installed program.
pub(super) fn program() -> Option<&'static str> {
    let mut programs = PROGRAMS.iter().copied();
    programs.find(|path| Path::new(path).exists())
}

/// The user that init and dnsmasq run as: `dnsmasq`, which its package creates, or else `nobody`.
pub(super) struct User {
    name: &'static str,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl User {
    pub(super) fn find() -> Result<Self> {
        let users = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        let ids = |name: &str| {
            users.lines().find_map(|line| {
                let mut fields = line.split(':');
                let has_name = fields.next() == Some(name);
                let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
                (has_name && uid != 0).then_some((uid, gid))
            })
        };
        ["dnsmasq", "nobody"]
            .into_iter()
            .find_map(|name| {
                let (uid, gid) = ids(name)?;
                Some(User { name, uid, gid })
            })
            .ok_or_else(|| anyhow!("/etc/passwd has no user dnsmasq or nobody"))
    }

    /// Creates the folder of the leases. This user may write in it, and root may read the leases and remove it even
    /// without CAP_DAC_OVERRIDE.
    pub(super) fn create_lease_folder(&self, path: &Path) -> Result<()> {
        let create = || -> io::Result<()> {
            match DirBuilder::new().create(path) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            let file = path.join(LEASES);
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false);
            // A dnsmasq that was taken over may have put a symbolic link there; the file that it leads to must not
            // change its owner.
            let file = open_regular(&file, &mut options)?;
            fchown(&file, Some(self.uid), Some(self.gid))?;
            // Nobody but root and this user can enter the folder.
            file.set_permissions(Permissions::from_mode(0o664))?;
            chown(path, None, Some(self.gid))?;
            set_permissions(path, Permissions::from_mode(0o770))
        };
        create().with_context(|| format!("cannot create {}", path.display()))
    }
}

/// dnsmasq's command line, which is all of its configuration: it does not read the host's configuration file.
pub(super) fn arguments(
    network: &Network,
    subnet: Ipv4Subnet,
    leases: &Path,
    user: &User,
) -> Vec<OsString> {
    let (first, last) = subnet.guests();
    let mut arguments: Vec<OsString> = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-hosts",
        "--log-facility=-",
        "--pid-file=",
        // It listens on the network's bridge, and on no other interface of the host.
        "--bind-interfaces",
        "--except-interface=lo",
        // It is the only DHCP server of the network, so it does not probe an address before it offers it.
        "--dhcp-authoritative",
        "--no-ping",
        "--dhcp-no-override",
        // Without this it would add guests without an address to the kernel's ARP table, for which it lacks the
        // capability.
        "--dhcp-broadcast",
        // Names without a dot and private addresses are not forwarded to the host's DNS servers.
        "--domain-needed",
        "--bogus-priv",
    ]
    .iter()
    .map(OsString::from)
    .collect();
    arguments.push(format!("--user={}", user.name).into());
    arguments.push(format!("--interface={}", network.bridge).into());
    arguments.push(format!("--dhcp-range={first},{last},{},1h", subnet.mask()).into());
    arguments.push(format!("--dhcp-lease-max={}", subnet.guest_count().min(65_536)).into());
    if network.mode.is_routed() {
        arguments.push(format!("--dhcp-option=option:router,{}", subnet.gateway()).into());
    } else {
        // Guests get no default route, and names outside this network are not resolved.
        arguments.push("--dhcp-option=option:router".into());
        arguments.push("--no-resolv".into());
    }
    let mut file = OsString::from("--dhcp-leasefile=");
    file.push(leases.join(LEASES));
    arguments.push(file);
    arguments
}
