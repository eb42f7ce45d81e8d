//! The default path of the helper's socket.

use std::path::{Path, PathBuf};

const SYSTEM: &str = "/run/bulkhead/net-helper.sock";

/// The path where clients look for the helper unless they are given another: `/run/bulkhead/net-helper.sock` for root;
/// for a user `$XDG_RUNTIME_DIR/bulkhead/net-helper.sock`, or the system's if only that exists.
pub fn default_socket_path() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let root = rustix::process::geteuid().is_root();
    choose(root, runtime.as_deref(), |path| path.exists())
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
}
