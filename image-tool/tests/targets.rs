//! Targets that no new file can replace are written in place, and what replaces a file has its attributes.

#![allow(clippy::disallowed_macros, reason = "a test prints why it was skipped")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use pair::{Outcome, TOOL, run, shell};
use tempfile::TempDir;

/// A user who owns nothing but what is given to him.
const SOMEBODY: u32 = 1234;

/// A folder with `s.raw`, 1 MiB of data, which everybody may enter.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.path().join("s.raw"), data()).unwrap();
    folder
}

fn data() -> Vec<u8> {
    (0..1u32 << 20).map(|at| (at % 251) as u8 + 1).collect()
}

/// Runs a line of shell as `shell` does, in a mount namespace of its own.
fn with_mounts(folder: &Path, line: &str) -> Outcome {
    let mut unshare = Command::new("unshare");
    run(unshare.args(["--mount", "sh", "-c", line]), folder)
}

/// Whether this is root, who can set such a test up.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: only root can set it up");
    }
    is_root
}

fn names(folder: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

/// Every verb that makes a file, as it makes `m`, with what `m` is then.
const VERBS: [(&str, Made); 5] = [
    ("convert -f raw -O raw s.raw m", Made::Raw),
    ("convert -f raw -O qcow2 s.raw m", Made::Qcow2),
    ("dd -f raw if=s.raw of=m bs=1M", Made::Raw),
    ("create -q -f raw m 2M", Made::Empty),
    (
        "create -q -f qcow2 -o preallocation=metadata m 2M",
        Made::Empty,
    ),
];

/// The verb with another name for `m`.
fn naming(verb: &str, name: &str) -> String {
    let word = |word: &str| match word {
        "m" => name.to_owned(),
        "of=m" => format!("of={name}"),
        other => other.to_owned(),
    };
    verb.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[derive(Clone, Copy, Debug)]
enum Made {
    Raw,
    Qcow2,
    Empty,
}

#[track_caller]
fn is_made(path: &Path, made: Made, why: &str) {
    let content = fs::read(path).unwrap();
    match made {
        Made::Raw => assert!(content == data(), "{why}: {} bytes", content.len()),
        Made::Qcow2 => {
            let source = path.with_file_name("s.raw");
            let mut tool = Command::new(TOOL);
            let compared = tool.args(["compare", "-q"]).args([path, &source]).status();
            assert!(compared.unwrap().success(), "{why}");
            let checked = Command::new(TOOL).args(["check", "-q"]).arg(path).status();
            assert!(checked.unwrap().success(), "{why}");
        }
        Made::Empty => {
            let mut tool = Command::new(TOOL);
            let info = tool.arg("info").arg(path).output().unwrap();
            let info = String::from_utf8(info.stdout).unwrap();
            assert!(info.contains("(2097152 bytes)"), "{why}: {info}");
        }
    }
}

#[test]
fn a_mount_point_is_written_in_place() {
    if !is_root() {
        return;
    }
    for (verb, made) in VERBS {
        let folder = folder();
        let path = folder.path();
        fs::write(path.join("m"), "old").unwrap();
        fs::write(path.join("h"), vec![9; 4 << 20]).unwrap();

        let line = format!("mount --bind h m && $T {verb}");
        let done = with_mounts(path, &line);

        assert_eq!(done.status, Some(0), "{verb}: {done:?}");
        is_made(&path.join("h"), made, verb);
        assert_eq!(fs::read(path.join("m")).unwrap(), b"old", "{verb}");
        assert_eq!(names(path), ["h", "m", "s.raw"], "{verb}");
    }
}

#[test]
fn a_file_in_a_read_only_container_is_written_in_place() {
    if !is_root() {
        return;
    }
    for (verb, made) in VERBS {
        let folder = folder();
        let path = folder.path();
        fs::write(path.join("h"), "old").unwrap();
        fs::create_dir(path.join("c")).unwrap();

        let line = format!(
            "mount -t tmpfs tmpfs c && cp s.raw c && touch c/m && mount --bind h c/m && mount -o remount,ro c && cd c && $T {verb}"
        );
        let done = with_mounts(path, &line);

        assert_eq!(done.status, Some(0), "{verb}: {done:?}");
        is_made(&path.join("h"), made, verb);
    }
}

#[test]
fn a_file_that_becomes_a_mount_point_meanwhile_is_written_all_the_same() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let path = folder.path();
    fs::write(path.join("m"), "old").unwrap();

    let line = "$T convert -r 2M -f raw -O raw s.raw m & \
        until ls -l /proc/$!/fd 2>/dev/null | grep -q deleted; do :; done; \
        mount --bind m m; wait $!";
    let done = with_mounts(path, line);

    assert_eq!(done.status, Some(0), "{done:?}");
    is_made(&path.join("m"), Made::Raw, line);
    assert_eq!(names(path), ["m", "s.raw"]);
}

/// As a user without privileges, in a folder with a file that the user may write.
fn as_somebody(verb: &str, prepare: &str) -> (TempDir, Outcome, u64) {
    let folder = folder();
    let path = folder.path();
    fs::create_dir(path.join("d")).unwrap();
    fs::write(path.join("d/m"), vec![9; 3 << 20]).unwrap();
    fs::copy(path.join("s.raw"), path.join("d/s.raw")).unwrap();
    assert_eq!(shell(path, prepare).status, Some(0), "{prepare}");
    let inode = fs::metadata(path.join("d/m")).unwrap().ino();
    let user = format!("--reuid={SOMEBODY} --regid={SOMEBODY} --clear-groups");
    let done = shell(path, &format!("cd d && exec setpriv {user} $T {verb}"));
    (folder, done, inode)
}

#[test]
fn a_file_that_a_user_may_write_and_not_replace_is_written_in_place() {
    if !is_root() {
        return;
    }
    for prepare in [
        // Another's sticky folder, and another's file.
        "chmod 1777 d; chmod 0666 d/m",
        // A folder that cannot be written, and the user's own file.
        "chmod 0755 d; chown 1234 d/m",
        // A new file would be the user's.
        "chmod 0777 d; chmod 0666 d/m",
        // The group is one that the user is not in.
        "chmod 0777 d; chown 1234:77 d/m",
        // Other names.
        "chmod 0777 d; chown 1234 d/m; ln d/m d/other",
    ] {
        for (verb, made) in VERBS {
            let (folder, done, inode) = as_somebody(verb, prepare);
            let m = folder.path().join("d/m");
            assert_eq!(done.status, Some(0), "{prepare}: {verb}: {done:?}");
            assert_eq!(fs::metadata(&m).unwrap().ino(), inode, "{prepare}: {verb}");
            is_made(&m, made, prepare);
            let names = names(&folder.path().join("d"));
            let is_stray = |name: &OsString| name.to_string_lossy().contains("unfinished");
            assert!(!names.iter().any(is_stray), "{names:?}");
        }
    }
}

#[test]
fn the_users_own_file_is_replaced_in_a_sticky_folder() {
    if !is_root() {
        return;
    }
    let prepare = "chmod 1777 d; chown 1234:1234 d/m; chmod 0640 d/m";
    for (verb, made) in VERBS {
        let (folder, done, inode) = as_somebody(verb, prepare);
        let m = folder.path().join("d/m");
        assert_eq!(done.status, Some(0), "{verb}: {done:?}");
        is_made(&m, made, verb);
        let now = fs::metadata(&m).unwrap();
        assert_ne!(now.ino(), inode, "{verb}");
        assert_eq!(
            (now.uid(), now.gid(), now.mode() & 0o7777),
            (1234, 1234, 0o640),
            "{verb}"
        );
    }
}

#[test]
fn what_replaces_a_file_has_its_attributes() {
    if !is_root() {
        return;
    }
    let attributes = |path: &Path| {
        let line = "stat -c '%u %g %a' m; getfattr -d -m - --absolute-names m; getfacl -p m; lsattr m | cut -c1-20";
        let printed = shell(path, line);
        assert_eq!(
            (printed.status, printed.stderr.as_str()),
            (Some(0), ""),
            "{printed:?}"
        );
        printed.stdout
    };
    for (verb, made) in VERBS {
        let folder = folder();
        let path = folder.path();
        let prepared = shell(
            path,
            "set -e; echo old >m; setfacl -d -m u:77:rw .; chown 12:34 m; chmod 0750 m; setfacl -m u:99:rw m; \
             setfattr -n user.note -v kept m; setfattr -n trusted.note -v too m; chattr +dAS m",
        );
        assert_eq!(prepared.status, Some(0), "{prepared:?}");
        let before = attributes(path);
        let inode = fs::metadata(path.join("m")).unwrap().ino();

        let done = shell(path, &format!("$T {verb}"));

        assert_eq!(done.status, Some(0), "{verb}: {done:?}");
        assert_eq!(attributes(path), before, "{verb}");
        assert_ne!(
            fs::metadata(path.join("m")).unwrap().ino(),
            inode,
            "{verb}: written in place"
        );
        is_made(&path.join("m"), made, verb);
        assert_eq!(names(path), ["m", "s.raw"], "{verb}");
    }
}

/// Runs a verb on what a descriptor names.
fn on_descriptor(folder: &Path, open: &str, verb: &str, name: &str) -> Outcome {
    let verb = naming(verb, name);
    shell(
        folder,
        &format!(
            "{open}; $T {verb} || exit; cp /proc/self/fd/9 copy; stat -L -c %i /proc/self/fd/9"
        ),
    )
}

#[test]
fn the_file_of_a_descriptor_is_written_and_no_other() {
    let names_of_it = ["/proc/self/fd/9", "/dev/fd/9", "/proc/$$/fd/9", "link"];
    let mut name = names_of_it.into_iter().cycle();
    for open in [
        "exec 9<>g",
        "exec 9<>g; rm g",
        "exec 9>g",
        "exec 9>>g; rm g",
        "ln -s g l; exec 9<>l",
    ] {
        for (verb, made) in VERBS {
            let name = name.next().unwrap();
            let folder = folder();
            let path = folder.path();
            std::os::unix::fs::symlink("/dev/fd/9", path.join("link")).unwrap();
            fs::write(path.join("g"), vec![8; 5000]).unwrap();
            let inode = fs::metadata(path.join("g")).unwrap().ino();

            let done = on_descriptor(path, open, verb, name);

            let why = format!("{open}: {verb} with {name}");
            assert_eq!(done.status, Some(0), "{why}: {done:?}");
            // What was made anew by `>` is the file all the same.
            assert_eq!(done.stdout.trim(), inode.to_string(), "{why}");
            is_made(&path.join("copy"), made, &why);
            let strays = names(path).into_iter().filter(|name| {
                let name = name.to_string_lossy();
                name.contains("deleted") || name.contains("unfinished")
            });
            assert_eq!(strays.count(), 0, "{why}: {:?}", names(path));
            assert!(
                fs::symlink_metadata(path.join("link"))
                    .unwrap()
                    .is_symlink()
            );
        }
    }
}

#[test]
fn standard_output_that_is_a_file_is_a_target() {
    for (verb, made) in VERBS {
        let folder = folder();
        let path = folder.path();
        let verb = naming(verb, "/dev/stdout");
        let out = File::create(path.join("out")).unwrap();
        let mut tool = Command::new(TOOL);
        let done = tool
            .args(verb.split(' '))
            .current_dir(path)
            .stdout(out)
            .output();
        let done = Outcome::from(done.unwrap());
        assert_eq!(done.status, Some(0), "{verb}: {done:?}");
        is_made(&path.join("out"), made, &verb);
        assert_eq!(names(path), ["out", "s.raw"], "{verb}");
    }
}

#[test]
fn a_descriptor_that_is_not_open_is_no_name_for_a_new_file() {
    let folder = folder();
    for name in ["/proc/self/fd/77", "/dev/fd/77", "/proc/self/fd/x"] {
        for (verb, _) in VERBS {
            let verb = naming(verb, name);
            let refused = shell(folder.path(), &format!("$T {verb}"));
            assert_eq!(refused.status, Some(1), "{verb}: {refused:?}");
            assert!(
                refused.stderr.contains("No such file or directory"),
                "{refused:?}"
            );
        }
    }
    assert_eq!(names(folder.path()), ["s.raw"]);
}

/// Starts a conversion that takes its time over a file with two names, and ends it by a signal once it has begun.
fn interrupted_in_place(arguments: &str, has_begun: impl Fn(&[u8]) -> bool) -> (TempDir, Outcome) {
    let folder = folder();
    let path = folder.path().to_owned();
    assert_eq!(shell(&path, "echo old >m; ln m n").status, Some(0));
    let child = Command::new(TOOL)
        .args(arguments.split(' '))
        .current_dir(&path)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Its signals are heard by a thread of its own.
    let status = format!("/proc/{}/status", child.id());
    let is_alone = || {
        fs::read_to_string(&status)
            .unwrap()
            .contains("Threads:\t1\n")
    };
    while !has_begun(&fs::read(path.join("m")).unwrap()) || is_alone() {
        std::thread::yield_now();
    }
    let killed = Command::new("kill").arg(child.id().to_string()).status();
    assert!(killed.unwrap().success());
    (folder, child.wait_with_output().unwrap().into())
}

#[test]
fn what_is_interrupted_in_place_is_said_to_be_incomplete() {
    let (_folder, ended) = interrupted_in_place("convert -r 1k -f raw -O raw s.raw m", |m| {
        !m.starts_with(b"old")
    });
    assert_eq!(ended.status, Some(128 + 15), "{ended:?}");
    assert_eq!(ended.stderr, "image-tool: 'm' is incomplete.\n");

    let (folder, ended) = interrupted_in_place("convert -r 1k -f raw -O qcow2 s.raw m", |m| {
        m.get(79) == Some(&2)
    });
    assert_eq!(ended.status, Some(128 + 15), "{ended:?}");
    assert!(
        ended
            .stderr
            .starts_with("image-tool: 'm' is incomplete, and marked corrupt until"),
        "{ended:?}"
    );
    let info = shell(folder.path(), "$T info m");
    assert!(info.stdout.contains("corrupt: true"), "{info:?}");
}

#[test]
fn what_fails_in_place_is_said_to_be_incomplete() {
    for (verb, _) in VERBS {
        let folder = folder();
        let line = format!("echo old >m; ln m n; ulimit -f 64; trap '' XFSZ; $T {verb}");
        let failed = shell(folder.path(), &line);
        assert_eq!(failed.status, Some(1), "{verb}: {failed:?}");
        let said = failed.stderr.lines().last().unwrap_or_default();
        assert!(
            said.starts_with("image-tool: 'm' is incomplete"),
            "{verb}: {failed:?}"
        );
    }
}

#[test]
fn a_name_that_was_left_behind_is_not_in_the_way() {
    let folder = folder();
    let line = "touch m; for n in '' -1; do echo left >.m.$$$n.unfinished; done; exec $T convert -f raw -O raw s.raw m";
    let done = shell(folder.path(), line);
    assert_eq!(done.status, Some(0), "{done:?}");
    is_made(&folder.path().join("m"), Made::Raw, line);
    let left = names(folder.path()).into_iter().filter(|name| {
        name.to_string_lossy().ends_with(".unfinished")
            && fs::read(folder.path().join(name)).unwrap() == b"left\n"
    });
    assert_eq!(left.count(), 2);
    assert_eq!(names(folder.path()).len(), 4);
}

#[test]
fn a_file_that_cannot_be_written_stays_as_it_was() {
    if !is_root() {
        return;
    }
    for (before, after, words) in [
        ("chattr +i m", "chattr -i m", "Operation not permitted"),
        ("chattr +a m", "chattr -a m", "Operation not permitted"),
        ("mount -o bind,ro m m", "umount m", "Read-only file system"),
    ] {
        for (verb, _) in VERBS {
            let folder = folder();
            let line = format!(
                "echo old >m; mount --bind . . && cd $PWD && {before} || exit 9; $T {verb}; s=$?; {after}; exit $s"
            );
            let refused = with_mounts(folder.path(), &line);
            assert_eq!(refused.status, Some(1), "{before}: {verb}: {refused:?}");
            assert!(
                refused.stderr.contains(words),
                "{before}: {verb}: {refused:?}"
            );
            assert_eq!(
                refused.stderr.lines().count(),
                1,
                "{before}: {verb}: {refused:?}"
            );
            assert_eq!(
                fs::read(folder.path().join("m")).unwrap(),
                b"old\n",
                "{verb}"
            );
            assert_eq!(names(folder.path()), ["m", "s.raw"], "{before}: {verb}");
        }
    }
}

#[test]
fn swap_space_in_use_is_no_target() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let made = shell(
        folder.path(),
        "head -c 2M /dev/zero >m; chmod 600 m; mkswap -q m && swapon m",
    );
    if made.status != Some(0) {
        eprintln!("skipped: no swap files here: {made:?}");
        return;
    }
    let before = fs::read(folder.path().join("m")).unwrap();
    let refused = VERBS.map(|(verb, _)| (verb, shell(folder.path(), &format!("$T {verb}"))));
    assert_eq!(shell(folder.path(), "swapoff m").status, Some(0));
    for (verb, refused) in refused {
        assert_eq!(refused.status, Some(1), "{verb}: {refused:?}");
        assert!(
            refused.stderr.contains("Text file busy"),
            "{verb}: {refused:?}"
        );
        assert_eq!(refused.stderr.lines().count(), 1, "{verb}: {refused:?}");
    }
    assert!(fs::read(folder.path().join("m")).unwrap() == before);
    assert_eq!(names(folder.path()), ["m", "s.raw"]);
}

#[test]
fn a_long_name_can_be_replaced() {
    for name in ["n".repeat(255), "\u{1f4be}".repeat(63)] {
        let folder = folder();
        let path = folder.path();
        fs::write(path.join(&name), "old").unwrap();
        let inode = fs::metadata(path.join(&name)).unwrap().ino();
        let done = run(
            Command::new(TOOL).args(["convert", "-f", "raw", "-O", "raw", "s.raw", &name]),
            path,
        );
        assert_eq!(done.status, Some(0), "{done:?}");
        is_made(&path.join(&name), Made::Raw, &name);
        assert_ne!(fs::metadata(path.join(&name)).unwrap().ino(), inode);
        assert_eq!(names(path).len(), 2);
    }
}

#[test]
fn new_files_may_be_written_by_their_owner_only() {
    for (umask, mode) in [("0", 0o644), ("022", 0o644), ("027", 0o640), ("077", 0o600)] {
        for (verb, _) in VERBS {
            let folder = folder();
            let done = shell(folder.path(), &format!("umask {umask}; $T {verb}"));
            assert_eq!(done.status, Some(0), "{verb}: {done:?}");
            let found = fs::metadata(folder.path().join("m")).unwrap().mode() & 0o7777;
            assert_eq!(found, mode, "{verb} with umask {umask}");
        }
        let folder = folder();
        let line = format!("umask {umask}; $T create -q -f qcow2 -o data_file=data m 1M");
        let done = shell(folder.path(), &line);
        assert_eq!(done.status, Some(0), "{done:?}");
        let found = fs::metadata(folder.path().join("data")).unwrap().mode() & 0o7777;
        assert_eq!(found, mode, "data file with umask {umask}");
    }
}

#[test]
fn a_descriptor_is_followed_whoever_opened_it() {
    let folder = folder();
    let file = File::options()
        .read(true)
        .write(true)
        .open(folder.path().join("s.raw"))
        .unwrap();
    let line = format!(
        "$T convert -f raw -O raw /proc/{}/fd/{} m",
        std::process::id(),
        file.as_raw_fd()
    );
    let done = shell(folder.path(), &line);
    assert_eq!(done.status, Some(0), "{done:?}");
    is_made(&folder.path().join("m"), Made::Raw, &line);
}
