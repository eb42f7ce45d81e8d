//! What several checks look at.

use bulkhead_process::confine::Refused;

use super::user::User;
pub(crate) use crate::host::{cpu_field, number, program, read};

/// The host, as far as several checks need it.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) user: User,
    /// What it refuses of the confinement, or why that could not be tried.
    pub(crate) refused: Result<Vec<Refused>, String>,
}

impl Host {
    pub(crate) fn look(refused: Result<Vec<Refused>, String>) -> Self {
        Self {
            user: User::look(),
            refused,
        }
    }
}

/// The flags of the first processor in /proc/cpuinfo; `None` where that cannot be read.
pub(crate) fn cpu_flags() -> Option<Vec<String>> {
    let text = read("/proc/cpuinfo").ok()?;
    let flags = cpu_field(&text, "flags")?;
    Some(flags.split_whitespace().map(str::to_owned).collect())
}

/// The command that installs a program, which is in the package that Debian calls so.
pub(crate) fn install(package: &str) -> String {
    let known = [
        ("apt-get", "apt-get install -y"),
        ("dnf", "dnf install -y"),
        ("zypper", "zypper install -y"),
        ("pacman", "pacman -S --noconfirm"),
        ("apk", "apk add"),
    ];
    let found = known.iter().find(|(name, _)| program(name).is_some());
    let (name, install) = found.unwrap_or(&known[0]);
    // Only Debian has it in a package of its own without the service.
    let package = match (*name, package) {
        ("apt-get", package) => package,
        (_, "dnsmasq-base") => "dnsmasq",
        (_, package) => package,
    };
    format!("{install} {package}")
}
