//! The command lines of the processes around a dnsmasq: a flag as the first argument, then parameters.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::path::Path;

/// A process that this program becomes when it is started with a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Supervisor,
    Standby,
    Init,
    Dnsmasq,
}

/// Each role's flag, and its flag in earlier versions: after an upgrade, a supervisor that still runs starts the new
/// file.
///
/// A supervisor's command line must not contain "dnsmasq": `pkill -9 -f dnsmasq` may kill dnsmasq and its init, and not
/// what starts them again.
const FLAGS: [(Role, &str, &str); 4] = [
    (Role::Supervisor, "--supervise-dhcp", "--launch-dhcp"),
    (
        Role::Standby,
        "--supervise-dhcp-standby",
        "--launch-dhcp-standby",
    ),
    (Role::Init, "--dnsmasq-init", "--keep-dnsmasq"),
    (Role::Dnsmasq, "--exec-dnsmasq", "--become-dnsmasq"),
];

impl Role {
    /// The role that a first argument asks for.
    pub(super) fn of(argument: &OsStr) -> Option<Self> {
        let is_its_flag =
            |(_, flag, earlier): &&(Role, &str, &str)| argument == *flag || argument == *earlier;
        FLAGS.iter().find(is_its_flag).map(|&(role, ..)| role)
    }

    /// The first argument that asks for this role.
    pub(super) fn flag(self) -> &'static str {
        let found = FLAGS.iter().find(|(role, ..)| *role == self);
        found.map_or("", |&(_, flag, _)| flag)
    }
}

/// The parameters of one dnsmasq. The helper writes them into the [lock file](super::lock); each process passes them to
/// the one it starts.
pub(super) struct Params<'a> {
    /// All of them, as arguments.
    pub(super) args: &'a [OsString],
    /// This program.
    pub(super) program: &'a Path,
    /// The folder of the leases.
    pub(super) leases: &'a Path,
    /// The user and the group that init and dnsmasq run as.
    pub(super) user: u32,
    pub(super) group: u32,
    /// dnsmasq, and its arguments.
    pub(super) dnsmasq: &'a Path,
    pub(super) dnsmasq_args: &'a [OsString],
}

impl<'a> Params<'a> {
    pub(super) fn parse(args: &'a [OsString]) -> io::Result<Self> {
        let [program, leases, user, group, dnsmasq, dnsmasq_args @ ..] = args else {
            return Err(invalid());
        };
        Ok(Params {
            args,
            program: Path::new(program),
            leases: Path::new(leases),
            user: number(user)?,
            group: number(group)?,
            dnsmasq: Path::new(dnsmasq),
            dnsmasq_args,
        })
    }
}

/// An argument that is a number.
pub(super) fn number<T: std::str::FromStr>(text: &OsStr) -> io::Result<T> {
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.ok_or_else(invalid)
}

pub(super) fn invalid() -> io::Error {
    io::Error::from(ErrorKind::InvalidInput)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_has_its_flag_and_that_of_earlier_versions() {
        for (flag, earlier, role) in [
            ("--supervise-dhcp", "--launch-dhcp", Role::Supervisor),
            (
                "--supervise-dhcp-standby",
                "--launch-dhcp-standby",
                Role::Standby,
            ),
            ("--dnsmasq-init", "--keep-dnsmasq", Role::Init),
            ("--exec-dnsmasq", "--become-dnsmasq", Role::Dnsmasq),
        ] {
            assert_eq!(role.flag(), flag);
            assert_eq!(
                [flag, earlier].map(|f| Role::of(OsStr::new(f))),
                [Some(role); 2]
            );
        }
        assert_eq!(Role::of(OsStr::new("--socket-path")), None);
    }
}
