//! The default path of the helper's socket, and the command by which it is started there.

use std::path::{Path, PathBuf};

const SYSTEM: &str = "/run/bulkhead/net-helper.sock";

/// The path where clients look for the helper unless they are given another: `/run/bulkhead/net-helper.sock` for root;
/// for a user `$XDG_RUNTIME_DIR/bulkhead/net-helper.sock`, or the system's if only that exists.
pub fn default_socket_path() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let root = rustix::process::geteuid().is_root();
    choose(root, runtime.as_deref(), |path| path.exists())
}

/// The command that root types to start a helper with these networks on `socket`, for a message to a user who has none.
/// What its reader has to choose is in capitals.
pub fn start_command<'a>(socket: &Path, networks: impl IntoIterator<Item = &'a str>) -> String {
    let mut command = "bulkhead-net-helper".to_owned();
    // A helper of root listens there anyway, and its socket must not be in a user's folder.
    if socket != default_socket_path() && socket != Path::new(SYSTEM) {
        command += &format!(" --socket-path {}", socket.display());
    }
    for name in networks {
        command += &match name {
            "default" => " --network default".to_owned(),
            name => format!(" --network name={name},subnet=SUBNET,bridge=BRIDGE"),
        };
    }
    if !rustix::process::geteuid().is_root() {
        command += " --group GROUP";
    }
    command
}

fn choose(root: bool, runtime: Option<&Path>, exists: impl Fn(&Path) -> bool) -> PathBuf {
    let own = runtime
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join("bulkhead/net-helper.sock"));
    match own {
        Some(own) if !root && (exists(&own) || !exists(Path::new(SYSTEM))) => own,
        _ => PathBuf::from(SYSTEM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_own_helper_comes_before_the_systems() {
        let user = Path::new("/run/user/1000");
        let own = PathBuf::from("/run/user/1000/bulkhead/net-helper.sock");
        assert_eq!(choose(false, Some(user), |_| true), own);
        assert_eq!(choose(false, Some(user), |_| false), own);
        assert_eq!(
            choose(false, Some(user), |p| p == Path::new(SYSTEM)),
            Path::new(SYSTEM)
        );
        assert_eq!(choose(true, Some(user), |_| true), Path::new(SYSTEM));
        assert_eq!(choose(false, None, |_| false), Path::new(SYSTEM));
        assert_eq!(
            choose(false, Some(Path::new("relative")), |_| false),
            Path::new(SYSTEM)
        );
    }

    #[test]
    fn the_command_has_the_socket_if_it_is_another_and_all_networks() {
        let group = match rustix::process::geteuid().is_root() {
            true => "",
            false => " --group GROUP",
        };
        for (socket, networks, wanted) in [
            (
                &*default_socket_path(),
                &["default"][..],
                "--network default",
            ),
            (Path::new(SYSTEM), &["default"], "--network default"),
            (
                Path::new("/h"),
                &["default", "lab"],
                "--socket-path /h --network default --network name=lab,subnet=SUBNET,bridge=BRIDGE",
            ),
        ] {
            let command = start_command(socket, networks.iter().copied());
            assert_eq!(command, format!("bulkhead-net-helper {wanted}{group}"));
        }
    }
}
