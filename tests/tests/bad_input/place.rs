//! Where the cases run: mount, network and process namespaces of their own, with the files they name.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bulkhead_tests::guest::{RUN, ip, kernel};
use bulkhead_tests::workplace::Workplace;
use rustix::process::{WaitOptions, wait};

use crate::case::{Case, Setting};
use crate::listeners;

/// Nobody.
const USER: u32 = 65534;
/// The working folder of the programs.
const FOLDER: &str = "/run/case";
const PROGRAMS: &str = "/run/programs";
const USERS_RUNTIME: &str = "/run/user";
/// How long a program may take to refuse. Some wait ten seconds for an answer first.
const SECONDS: &str = "40";

/// All there is for a program to leave something in.
#[derive(PartialEq, Eq)]
struct State {
    /// Files below [`RUN`] with their sizes, links, addresses, tables, settings: a line each.
    things: BTreeSet<String>,
}

/// The place, prepared.
pub(crate) struct Place;

impl Place {
    pub(crate) fn new() -> Self {
        for folder in [FOLDER, PROGRAMS] {
            fs::create_dir(folder).unwrap();
        }
        let programs = Workplace::find().unwrap().programs;
        mount(&["--bind", programs.to_str().unwrap(), PROGRAMS]);
        for folder in [
            PathBuf::from(USERS_RUNTIME),
            Path::new(RUN).join(long_name()),
        ] {
            fs::create_dir(&folder).unwrap();
            chown(&folder, Some(USER), Some(USER)).unwrap();
            fs::set_permissions(&folder, PermissionsExt::from_mode(0o700)).unwrap();
        }
        make_files(Path::new(FOLDER));
        listeners::serve(Path::new(FOLDER));
        Self
    }

    /// What is wrong with how a case is refused, if anything is.
    pub(crate) fn complaint(&self, case: &Case) -> Option<String> {
        if case.setting == Setting::SubnetInUse {
            ip("link add in-use0 type bridge");
            ip("address add 192.168.124.9/24 dev in-use0");
            ip("link set in-use0 up");
        }
        let before = State::now();
        let output = run(case);
        let left = running();
        let after = State::now();
        if case.setting == Setting::SubnetInUse {
            ip("link delete in-use0");
        }

        let mut wrong = told_wrongly(case, &output);
        wrong.extend(
            left.into_iter()
                .map(|process| format!("left running: {process}")),
        );
        wrong.extend(
            after
                .things
                .difference(&before.things)
                .map(|thing| format!("left behind: {thing}")),
        );
        wrong.extend(
            before
                .things
                .difference(&after.things)
                .map(|thing| format!("gone or changed: {thing}")),
        );
        let said = String::from_utf8_lossy(&output.stderr);
        (!wrong.is_empty()).then(|| {
            format!(
                "{}\n    {}\n    it said: {}",
                case.line,
                wrong.join("\n    "),
                said.trim_end()
            )
        })
    }
}

fn told_wrongly(case: &Case, output: &Output) -> Vec<String> {
    let mut wrong = Vec::new();
    if output.status.code() != Some(case.status) {
        wrong.push(format!("{} instead of {}", output.status, case.status));
    }
    if !output.stdout.is_empty() {
        wrong.push(format!(
            "on standard output: {}",
            String::from_utf8_lossy(&output.stdout)
        ));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let begin = match case.line.starts_with("image-tool") {
        true => "image-tool: ",
        false => "error: ",
    };
    if !said.starts_with(begin) || !said.ends_with('\n') || said.lines().count() != 1 {
        wrong.push(format!("not one line that begins with {begin:?}"));
    }
    let missing = case
        .says
        .iter()
        .filter(|words| !said.to_lowercase().contains(&words.to_lowercase()));
    wrong.extend(missing.map(|words| format!("{words:?} is not said")));
    wrong
}

/// Runs a case to its end.
fn run(case: &Case) -> Output {
    let arrange = match case.setting {
        Setting::Sound | Setting::SubnetInUse => "exec \"$@\"".to_owned(),
        Setting::NoKvm => "mount -t tmpfs none /dev && exec \"$@\"".to_owned(),
        Setting::NoDnsmasq => "mount -t tmpfs none /usr/sbin && exec \"$@\"".to_owned(),
        Setting::OtherUser => format!(
            "mount -t tmpfs -o mode=755 none /dev && mknod -m 600 /dev/kvm c 10 232 && \
             exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\""
        ),
    };
    Command::new("unshare")
        .args([
            "--mount",
            "timeout",
            "--kill-after=5",
            SECONDS,
            "sh",
            "-c",
            &arrange,
            "sh",
        ])
        .args(case.line.replace("LONG", &long_name()).split(' '))
        .current_dir(FOLDER)
        .env(
            "PATH",
            format!("{PROGRAMS}:{}", std::env::var("PATH").unwrap()),
        )
        .env("XDG_RUNTIME_DIR", USERS_RUNTIME)
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// One name that is longer than the 107 bytes of a socket's path.
fn long_name() -> String {
    "x".repeat(120)
}

/// The processes there are besides this one. Orphans come to this one, the first of its namespace.
fn running() -> Vec<String> {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
    fs::read_dir("/proc")
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .unwrap()
                .parse::<u32>()
                .is_ok_and(|process| process != 1)
        })
        .map(|entry| {
            fs::read_to_string(entry.path().join("comm"))
                .unwrap_or_default()
                .trim_end()
                .to_owned()
        })
        .collect()
}

impl State {
    fn now() -> Self {
        let mut things = BTreeSet::new();
        files(Path::new(RUN), &mut things);
        for command in [
            "ip -oneline link",
            "ip -oneline address",
            "ip route show table all",
            "nft list ruleset",
        ] {
            let words: Vec<&str> = command.split(' ').collect();
            let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
            assert!(output.status.success(), "{command}: {output:?}");
            let text = String::from_utf8(output.stdout).unwrap();
            things.extend(text.lines().map(str::to_owned));
        }
        let forwarding = "/proc/sys/net/ipv4/ip_forward";
        things.insert(format!(
            "{forwarding} = {}",
            fs::read_to_string(forwarding).unwrap().trim_end()
        ));
        Self { things }
    }
}

fn files(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let size = if metadata.is_dir() { 0 } else { metadata.len() };
        found.insert(format!("{} of {size} bytes", path.display()));
        if metadata.is_dir() && path != Path::new(PROGRAMS) {
            files(&path, found);
        }
    }
}

fn mount(words: &[&str]) {
    let status = Command::new("mount").args(words).status().unwrap();
    assert!(status.success(), "mount {words:?}");
}

fn make_files(folder: &Path) {
    let guest = fs::read(kernel()).unwrap();
    let file = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).unwrap();
    let sparse = |name: &str, size| {
        fs::File::create(folder.join(name))
            .unwrap()
            .set_len(size)
            .unwrap()
    };
    fs::create_dir(folder.join("folder")).unwrap();
    file("guest", &guest);
    file("empty", b"");
    file("text", "Not what it should be.\n".repeat(100).as_bytes());
    file("truncated-header", &guest[..100]);
    file("truncated-elf", &guest[..guest.len() / 4]);
    file("truncated-bzimage", &bzimage_without_its_end());
    sparse("large", 300 << 20);
    sparse("disk.raw", 1 << 20);
    image_tool("create -q -f qcow2 gone.qcow2 1M");
    image_tool("create -q -f qcow2 -b gone.qcow2 -F qcow2 orphan.qcow2");
    fs::remove_file(folder.join("gone.qcow2")).unwrap();
    image_tool("create -q -f qcow2 loop.qcow2 1M");
    image_tool("create -q -f qcow2 -b loop.qcow2 -F qcow2 between.qcow2");
    image_tool("rebase -u -b between.qcow2 -F qcow2 loop.qcow2");
    image_tool("create -q -f qcow2 -b disk.raw -F raw undeclared.qcow2");
    forget_backing_format(&folder.join("undeclared.qcow2"));
}

/// The setup header of a bzImage (Documentation/arch/x86/boot.rst) that announces more than follows.
fn bzimage_without_its_end() -> Vec<u8> {
    const SETUP_SECTORS: usize = 0x1f1;
    const PROTECTED_MODE_PARAGRAPHS: usize = 0x1f4;
    const BOOT_FLAG: usize = 0x1fe;
    const MAGIC: usize = 0x202;
    const VERSION: usize = 0x206;
    const LOAD_FLAGS: usize = 0x211;
    const XLOAD_FLAGS: usize = 0x236;
    let mut image = vec![0; 8192];
    let mut field =
        |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    field(SETUP_SECTORS, &[4]);
    field(PROTECTED_MODE_PARAGRAPHS, &u32::to_le_bytes(8 << 20 >> 4));
    field(BOOT_FLAG, &[0x55, 0xaa]);
    field(0x200, &[0xeb, 0x6a]); // a jump over the header, which says its length
    field(MAGIC, b"HdrS");
    field(VERSION, &u16::to_le_bytes(0x020f));
    field(LOAD_FLAGS, &[1]); // loaded high
    field(XLOAD_FLAGS, &[1]); // has a 64-bit entry
    image
}

fn image_tool(words: &str) {
    let mut command = Command::new(Path::new(PROGRAMS).join("image-tool"));
    let status = command
        .args(words.split(' '))
        .current_dir(FOLDER)
        .status()
        .unwrap();
    assert!(status.success(), "image-tool {words}");
}

/// Makes the header extension with the backing file's format (qcow2, "Header extensions") one that nobody knows.
fn forget_backing_format(image: &Path) {
    const BACKING_FORMAT: [u8; 4] = [0xe2, 0x79, 0x2a, 0xca];
    let mut bytes = fs::read(image).unwrap();
    let at = bytes
        .windows(4)
        .position(|window| window == BACKING_FORMAT)
        .unwrap();
    bytes[at..at + 4].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
    fs::write(image, bytes).unwrap();
}
