//! Whatever is wrong with the input: one line on standard error that says what with which argument or file, exit status 1
//! (2 for a wrong command line), and nothing left behind.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use bulkhead_tests::guest::kvm_is_usable;
use bulkhead_tests::workplace::Workplace;

/// What a shell runs (in a network namespace of its own, `@` is the folder of the files), exit status, what the line has to mention.
type Case = (&'static str, i32, &'static [&'static str]);

const VMM: &[Case] = &[
    // No /dev/kvm, or no permission for it: what to do about it.
    (
        "unshare -m sh -c 'mount -t tmpfs none /dev && exec bulkhead-vmm --kernel @/bzimage'",
        1,
        &["/dev/kvm", "kvm_amd"],
    ),
    (
        "setpriv --reuid 65534 --regid 65534 --clear-groups bulkhead-vmm --kernel @/bzimage",
        1,
        &["/dev/kvm", "group"],
    ),
    // Kernel and initramfs.
    (
        "bulkhead-vmm --kernel @/missing",
        1,
        &["@/missing", "No such file"],
    ),
    ("bulkhead-vmm --kernel @/empty", 1, &["@/empty", "empty"]),
    (
        "bulkhead-vmm --kernel @/truncated",
        1,
        &["@/truncated", "truncated"],
    ),
    (
        "bulkhead-vmm --kernel @/junk",
        1,
        &["@/junk", "not a kernel"],
    ),
    (
        "bulkhead-vmm --kernel @/bzimage --initramfs @/missing",
        1,
        &["@/missing", "No such file"],
    ),
    (
        "bulkhead-vmm --kernel @/bzimage --initramfs @/large --memory size=256M",
        1,
        &["@/large", "does not fit"],
    ),
    // Memory and vCPUs.
    (
        "bulkhead-vmm --kernel @/bzimage --memory size=0",
        2,
        &["--memory"],
    ),
    (
        "bulkhead-vmm --kernel @/bzimage --memory size=268435457",
        2,
        &["--memory", "multiple"],
    ),
    (
        "bulkhead-vmm --kernel @/bzimage --memory size=30T",
        1,
        &["--memory", "the host has"],
    ),
    (
        "bulkhead-vmm --kernel @/bzimage --cpus boot=0",
        2,
        &["--cpus"],
    ),
    (
        "bulkhead-vmm --kernel @/bzimage --cpus boot=256",
        2,
        &["--cpus"],
    ),
    // Sockets.
    (
        "bulkhead-vmm --kernel @/bzimage --disk vhost_user=on,socket=@/missing",
        1,
        &["--disk", "@/missing"],
    ),
    (
        "bulkhead-vmm --kernel @/bzimage --disk vhost_user=on,socket=@/empty",
        1,
        &["--disk", "not a socket"],
    ),
    (
        "bulkhead-vmm --kernel @/bzimage --disk vhost_user=on,socket=@/LONG",
        1,
        &["--disk", "too long"],
    ),
    (
        "bulkhead-vmm --kernel @/bzimage --disk vhost_user=on,socket=@/http",
        1,
        &["--disk", "not vhost-user"],
    ),
];

const BACKENDS: &[Case] = &[
    // Images.
    (
        "bulkhead-block --socket-path @/s --format raw --blk-file @/missing",
        1,
        &["@/missing", "No such file"],
    ),
    (
        "bulkhead-block --socket-path @/s --format qcow2 --blk-file @/raw.img",
        1,
        &["@/raw.img", "qcow2"],
    ),
    (
        "bulkhead-block --socket-path @/s --blk-file @/raw.img",
        2,
        &["--format"],
    ),
    (
        "bulkhead-block --socket-path @/s --format vmdk --blk-file @/raw.img",
        2,
        &["--format", "vmdk"],
    ),
    (
        "bulkhead-block --socket-path @/s --format qcow2 --blk-file @/no-backing.qcow2",
        1,
        &["gone.qcow2", "No such file"],
    ),
    (
        "bulkhead-block --socket-path @/s --format qcow2 --blk-file @/loop.qcow2",
        1,
        &["loop.qcow2"],
    ),
    (
        "bulkhead-block --socket-path @/s --format qcow2 --blk-file @/no-format.qcow2",
        1,
        &["no-format.qcow2", "format"],
    ),
    (
        "bulkhead-block --socket-path @/LONG --format raw --blk-file @/raw.img",
        1,
        &["@/LONG", "107"],
    ),
    (
        "bulkhead-block --socket-path @/missing/s --format raw --blk-file @/raw.img",
        1,
        &["@/missing/s"],
    ),
    (
        "bulkhead-block --format raw --blk-file @/raw.img",
        2,
        &["--socket-path"],
    ),
    // Taps and the helper.
    (
        "bulkhead-net --socket-path @/s --tap a-name-of-sixteen",
        2,
        &["--tap", "15"],
    ),
    (
        "bulkhead-net --socket-path @/s --network default --helper-socket @/missing",
        1,
        &["not running", "@/missing"],
    ),
    ("bulkhead-net --socket-path @/s", 2, &["--tap"]),
    (
        "ip link add in-use type bridge && ip address add 192.168.124.9/24 dev in-use && ip link set in-use up && \
      exec bulkhead-net-helper --socket-path @/s --state-dir @/state --network default",
        1,
        &["192.168.124.0/24", "in-use"],
    ),
    (
        "bulkhead-net-helper --socket-path @/s --network name=x,subnet=10.0.0.0/33",
        2,
        &["--network", "10.0.0.0/33"],
    ),
];

const COMMANDS: &[Case] = &[
    (
        "bulkhead run --name x --kernel @/bzimage --disk @/raw",
        2,
        &["--disk", "format"],
    ),
    (
        "bulkhead run --name ../x --kernel @/bzimage",
        2,
        &["--name"],
    ),
    (
        "bulkhead run --name x --kernel @/missing",
        1,
        &["@/missing"],
    ),
    (
        "bulkhead run --name x --kernel @/bzimage --disk @/missing.qcow2",
        1,
        &["@/missing.qcow2"],
    ),
    (
        "bulkhead run --name x --kernel @/bzimage --net default --helper-socket @/missing",
        1,
        &["not running", "@/missing"],
    ),
    (
        "bulkhead run --name x --kernel @/bzimage --cpus 256",
        2,
        &["--cpus"],
    ),
    ("image-tool info @/missing", 1, &["@/missing"]),
    ("image-tool check -f qcow2 @/raw.img", 1, &["@/raw.img"]),
];

#[test]
fn the_monitor_says_what_is_wrong() {
    if kvm_is_usable("the_monitor_says_what_is_wrong") {
        all_refused(VMM);
    }
}

#[test]
fn backends_and_helper_say_what_is_wrong() {
    all_refused(BACKENDS);
}

#[test]
fn commands_say_what_is_wrong() {
    all_refused(COMMANDS);
}

/// One test at a time: each looks at what is left in `/run`.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs all cases before it complains, so that one run shows all that is wrong.
fn all_refused(cases: &[Case]) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = Folder::new();
    let complaints: Vec<String> = cases
        .iter()
        .filter_map(|case| folder.complaint(case))
        .collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

struct Folder {
    folder: tempfile::TempDir,
    workplace: Workplace,
}

impl Folder {
    fn new() -> Self {
        let workplace = Workplace::find().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let kernel = workplace.kernel().unwrap().bzimage();
        std::os::unix::fs::symlink(&kernel, path.join("bzimage")).unwrap();
        std::fs::write(
            path.join("truncated"),
            &std::fs::read(&kernel).unwrap()[..1 << 20],
        )
        .unwrap();
        std::fs::write(path.join("junk"), [0x5a; 1 << 16]).unwrap();
        std::fs::write(path.join("empty"), "").unwrap();
        sparse(&path.join("large"), 512 << 20);
        sparse(&path.join("raw.img"), 1 << 20);
        overlay(path, "no-backing.qcow2", "gone.qcow2");
        overlay(path, "loop.qcow2", "ring.qcow2");
        overlay(path, "ring.qcow2", "loop.qcow2");
        overlay(path, "no-format.qcow2", "raw.img");
        forget_backing_format(&path.join("no-format.qcow2"));
        speak_http(&path.join("http"));
        // Another user has to get here, too.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, open).unwrap();
        Self { folder, workplace }
    }

    /// What is wrong with how a case is refused.
    fn complaint(&self, (line, status, mentions): &Case) -> Option<String> {
        let folder = self.folder.path().to_str().unwrap();
        let expand = |text: &str| {
            text.replace("LONG", &"long".repeat(40))
                .replace('@', folder)
        };
        let before = self.left();
        let path = std::env::var("PATH").unwrap_or_default();
        let output = Command::new("timeout")
            .args(["20", "unshare", "--net", "sh", "-c", &expand(line)])
            .env(
                "PATH",
                format!("{}:{path}", self.workplace.programs.display()),
            )
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let complain = |what: String| {
            Some(format!(
                "{line}\n    {what}\n    it said: {}",
                errors.trim_end()
            ))
        };
        if output.status.code() != Some(*status) {
            return complain(format!("{} instead of {status}", output.status));
        }
        // image-tool's lines are qemu-img's, which begin with its name.
        let begins = if line.starts_with("image-tool") {
            "image-tool: "
        } else {
            "error: "
        };
        if errors.lines().count() != 1 || !errors.starts_with(begins) {
            return complain(format!("not one line that begins with {begins:?}"));
        }
        if let Some(missing) = mentions
            .iter()
            .map(|word| expand(word))
            .find(|word| !errors.contains(word.as_str()))
        {
            return complain(format!("{missing:?} is not mentioned"));
        }
        let left: Vec<String> = self.left().difference(&before).cloned().collect();
        (!left.is_empty()).then(|| format!("{line}\n    left behind: {left:?}"))
    }

    /// The files there are where programs might leave some.
    fn left(&self) -> BTreeSet<String> {
        let folders = [
            self.folder.path(),
            Path::new("/run/bulkhead"),
            Path::new("/run"),
        ];
        let entries = folders
            .iter()
            .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
        let paths = entries.map(|entry| entry.path().display().to_string());
        paths
            .filter(|path| {
                path.contains("bulkhead") || path.starts_with(self.folder.path().to_str().unwrap())
            })
            .collect()
    }
}

fn sparse(path: &Path, size: u64) {
    std::fs::File::create(path).unwrap().set_len(size).unwrap();
}

/// A qcow2 image on a backing file that is not looked at.
fn overlay(folder: &Path, name: &str, backing: &str) {
    let format = if backing.ends_with("qcow2") {
        "qcow2"
    } else {
        "raw"
    };
    let create = [
        "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format, name, "1M",
    ];
    assert!(
        Command::new("qemu-img")
            .args(create)
            .current_dir(folder)
            .status()
            .unwrap()
            .success()
    );
}

/// Makes the header extension that says the backing file's format one that nobody knows.
fn forget_backing_format(image: &Path) {
    let mut bytes = std::fs::read(image).unwrap();
    let at = bytes
        .windows(4)
        .position(|window| window == [0xe2, 0x79, 0x2a, 0xca])
        .unwrap();
    bytes[at..at + 4].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
    std::fs::write(image, bytes).unwrap();
}

/// Listens, and answers whatever comes as a web server would.
fn speak_http(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 64]);
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
            });
        }
    });
}
