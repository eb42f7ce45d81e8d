//! The definitions of an ordinary user.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::host::{OWN, refusal};

const NOBODY: u32 = 65534;

/// The command of a user with these variables and no others.
fn by_user(folder: &Path, words: &[&str], variables: &[(&str, &Path)]) -> Output {
    let is_root = rustix::process::geteuid().is_root();
    let mut command = Command::new(if is_root {
        folder.join("bulkhead")
    } else {
        OWN.into()
    });
    if is_root {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
        .env_clear()
        .envs(variables.iter().copied())
        .args(words)
        .current_dir("/")
        .output()
        .unwrap()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    if rustix::process::geteuid().is_root() {
        // The user may not look into the folder that this was built in.
        std::fs::copy(OWN, folder.path().join("bulkhead")).unwrap();
        std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    std::fs::write(folder.path().join("g.toml"), "name = 'g'\nkernel = '/k'\n").unwrap();
    folder
}

#[test]
fn a_user_has_definitions_in_the_folder_for_configuration() {
    let folder = folder();
    let path = folder.path();
    let file = path.join("g.toml").display().to_string();
    let (home, config) = (path.join("home"), path.join("config"));
    for (variables, guests) in [
        (
            &[("HOME", &*home)][..],
            home.join(".config/bulkhead/guests"),
        ),
        (
            &[("HOME", &*home), ("XDG_CONFIG_HOME", &*config)],
            config.join("bulkhead/guests"),
        ),
        (
            // As the specification of that folder says.
            &[("HOME", &*home), ("XDG_CONFIG_HOME", Path::new("relative"))],
            home.join(".config/bulkhead/guests"),
        ),
    ] {
        let output = by_user(path, &["define", &file], variables);
        assert!(output.status.success(), "{output:?}");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&guests), 0o700);
        assert_eq!(mode(&guests.join("g.toml")), 0o600);
        let output = by_user(path, &["domname", "g"], variables);
        assert_eq!(output.stdout, b"g\n\n", "{output:?}");
        let output = by_user(path, &["undefine", "g"], variables);
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn a_user_without_a_home_is_told_what_to_set() {
    let folder = folder();
    for words in [&["domuuid", "g"][..], &["autostart", "g"]] {
        let refused = refusal(&by_user(folder.path(), words, &[]));
        assert!(
            refused.starts_with("neither XDG_CONFIG_HOME nor HOME is set to an absolute path"),
            "{refused}"
        );
    }
}
