//! The command line that all vhost-user backends share ("Backend program conventions" of the vhost-user specification).

use std::io::{self, Write};
use std::os::fd::RawFd;
use std::path::PathBuf;

/// The options of the vhost-user socket. For `#[command(flatten)]`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DaemonArgs {
    /// Listen on this Unix socket, which is made with mode 0600
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with = "fd",
        required_unless_present_any = ["fd", "print_capabilities"]
    )]
    pub socket_path: Option<PathBuf>,

    /// Use this inherited socket, listening or connected
    #[arg(long, value_name = "N")]
    pub fd: Option<RawFd>,

    /// When the frontend disconnects, wait for another one instead of ending
    #[arg(long)]
    pub persist: bool,

    /// Print the optional features of this program as JSON, and end
    #[arg(long)]
    pub print_capabilities: bool,
}

/// The device type of a backend, as the specification's `vhost-user.json` names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DeviceType {
    /// virtio-blk
    Block,
    /// virtio-net
    Net,
}

impl DeviceType {
    fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Net => "net",
        }
    }
}

/// Prints what `--print-capabilities` asks for: the device type, and which optional features of the conventions the
/// program has.
///
/// # Errors
/// When standard output cannot be written.
pub fn print_capabilities(device_type: DeviceType, features: &[&str]) -> io::Result<()> {
    let capabilities = serde_json::json!({ "type": device_type.name(), "features": features });
    writeln!(io::stdout(), "{capabilities:#}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        daemon: DaemonArgs,
    }

    fn parse(args: &[&str]) -> Result<DaemonArgs, clap::Error> {
        Program::try_parse_from([&["program"], args].concat()).map(|program| program.daemon)
    }

    #[test]
    fn a_socket_is_named_in_one_way_only() {
        assert!(parse(&["--socket-path", "a"]).is_ok());
        assert_eq!(parse(&["--fd=3"]).unwrap().fd, Some(3));
        assert!(parse(&["--socket-path", "a", "--fd", "3"]).is_err());
        assert!(parse(&[]).is_err());
    }

    #[test]
    fn capabilities_need_no_socket() {
        assert!(parse(&["--print-capabilities"]).unwrap().print_capabilities);
    }
}
