//! What the network helper needs of the host: TAP devices and forwarding.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::fs::{Access, AtFlags, CWD, accessat, major, minor};

use super::finding::Finding;
use super::host::{self, Host};

pub(crate) fn check(host: &Host) -> Vec<Finding> {
    vec![tun(host.user.is_root()), forwarding(host.user.is_root())]
}

fn tun(is_root: bool) -> Finding {
    const TUN: &str = "/dev/net/tun";
    const NUMBER: (u32, u32) = (10, 200);
    const MAKE: &str = "mkdir -p /dev/net && mknod -m 0666 /dev/net/tun c 10 200";
    let metadata = match std::fs::metadata(TUN) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let loaded = std::path::Path::new("/sys/class/misc/tun").exists();
            return match loaded {
                true => Finding::fail(TUN, "not there, though tun is loaded").run_as_root(MAKE),
                false => Finding::fail(TUN, "not there: guests have no network")
                    .run_as_root("modprobe tun"),
            };
        }
        Err(error) => return Finding::fail(TUN, error.to_string()),
    };
    let number = (major(metadata.rdev()), minor(metadata.rdev()));
    if !metadata.file_type().is_char_device() || number != NUMBER {
        return Finding::fail(TUN, "something else has this name")
            .run_as_root(format!("rm -r {TUN} && {MAKE}"));
    }
    // A user's guests get their TAP devices from root's helper.
    match accessat(
        CWD,
        TUN,
        Access::READ_OK | Access::WRITE_OK,
        AtFlags::EACCESS,
    ) {
        Err(error) if is_root => {
            Finding::fail(TUN, error.to_string()).run_as_root(format!("chmod 0666 {TUN}"))
        }
        _ => Finding::ok(TUN, ""),
    }
}

fn forwarding(is_root: bool) -> Finding {
    const CHECK: &str = "IPv4 forwarding";
    const PATH: &str = "/proc/sys/net/ipv4/ip_forward";
    match host::number(PATH) {
        Some(0) => {}
        Some(_) => return Finding::ok(CHECK, "on"),
        None => {
            return Finding::fail(CHECK, format!("{PATH} cannot be read"))
                .run_as_root("mount -t proc proc /proc");
        }
    }
    let writable = accessat(CWD, PATH, Access::WRITE_OK, AtFlags::EACCESS).is_ok();
    match is_root && !writable {
        true => Finding::fail(
            CHECK,
            "off, and the network helper cannot switch it on here: no NAT, no routes",
        )
        .advise("start the container with --sysctl net.ipv4.ip_forward=1"),
        false => Finding::ok(
            CHECK,
            "off; the network helper switches it on, for guests only",
        ),
    }
}
