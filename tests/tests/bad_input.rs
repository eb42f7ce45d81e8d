//! What every program does with bad input: one `error: …` line that says what was wrong with which argument or file, exit
//! status 1 (2 for usage), and nothing left behind: no file, process, link, address, nftables table or setting.
//!
//! A case is a command line, the status it has to end with, and words that its line has to have in it. All of them run
//! natively, one after the other, in namespaces of this test's own, where whatever is left can be seen.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

#[path = "bad_input/listeners.rs"]
mod listeners;
#[path = "bad_input/place.rs"]
mod place;

use place::{Place, in_own_namespaces};

/// What is wrong with where a program runs, rather than with what it is given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Setting {
    /// Nothing.
    Sound,
    /// There is no /dev/kvm.
    NoKvm,
    /// The user is not root, and /dev/kvm is root's.
    OtherUser,
    /// dnsmasq is not installed.
    NoDnsmasq,
    /// A bridge of the host's has the default network's subnet.
    SubnetInUse,
}

/// A command line that is refused. `LONG` in it is a name longer than a socket's path can be.
struct Case {
    line: &'static str,
    status: i32,
    says: &'static [&'static str],
    setting: Setting,
    /// It is only noticed once the program has a KVM.
    needs_kvm: bool,
}

const fn refused(line: &'static str, status: i32, says: &'static [&'static str]) -> Case {
    Case {
        line,
        status,
        says,
        setting: Setting::Sound,
        needs_kvm: false,
    }
}

impl Case {
    const fn with_kvm(mut self) -> Self {
        self.needs_kvm = true;
        self
    }

    const fn when(mut self, setting: Setting) -> Self {
        self.setting = setting;
        self
    }
}

const USAGE: &[Case] = &[
    refused("bulkhead --no-such", 2, &["--no-such"]),
    refused("bulkhead", 2, &["subcommand", "run"]),
    refused("bulkhead no-such", 2, &["no-such"]),
    refused("bulkhead run --no-such", 2, &["--no-such"]),
    refused("bulkhead run --kernel guest", 2, &["--name"]),
    refused("bulkhead run --name g", 2, &["--kernel"]),
    refused(
        "bulkhead run --name ../g --kernel guest",
        2,
        &["--name", "../g"],
    ),
    refused("bulkhead-vmm --no-such", 2, &["--no-such"]),
    refused("bulkhead-vmm", 2, &["--kernel"]),
    refused("bulkhead-block --no-such", 2, &["--no-such"]),
    refused(
        "bulkhead-block --format raw --blk-file disk.raw",
        2,
        &["--socket-path"],
    ),
    refused("bulkhead-block --socket-path s", 2, &["--blk-file"]),
    refused("bulkhead-net --no-such", 2, &["--no-such"]),
    refused("bulkhead-net --tap tap0", 2, &["--socket-path"]),
    refused(
        "bulkhead-net --socket-path s",
        2,
        &["--tap", "--tap-fd", "--network"],
    ),
    refused("bulkhead-net-helper --no-such", 2, &["--no-such"]),
    // image-tool has qemu-img's messages and statuses; its own tests compare them.
];

const KVM: &[Case] = &[
    refused(
        "bulkhead-vmm --kernel guest",
        1,
        &["/dev/kvm", "kvm_intel or kvm_amd"],
    )
    .when(Setting::NoKvm),
    refused(
        "bulkhead run --name g --kernel guest",
        1,
        &["/dev/kvm", "kvm_intel or kvm_amd"],
    )
    .when(Setting::NoKvm),
    refused("bulkhead-vmm --kernel guest", 1, &["/dev/kvm", "group kvm"]).when(Setting::OtherUser),
    refused(
        "bulkhead run --name g --kernel guest",
        1,
        &["/dev/kvm", "group kvm"],
    )
    .when(Setting::OtherUser),
];

const KERNEL: &[Case] = &[
    refused(
        "bulkhead-vmm --kernel missing",
        1,
        &["kernel missing", "No such file"],
    )
    .with_kvm(),
    refused("bulkhead-vmm --kernel empty", 1, &["kernel empty is empty"]).with_kvm(),
    refused(
        "bulkhead-vmm --kernel folder",
        1,
        &["kernel folder is not a file"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel truncated-header",
        1,
        &["kernel truncated-header is truncated"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel truncated-elf",
        1,
        &["kernel truncated-elf is truncated"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel truncated-bzimage",
        1,
        &["kernel truncated-bzimage is truncated"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel text",
        1,
        &["kernel text is not a kernel"],
    )
    .with_kvm(),
    refused(
        "bulkhead run --name g --kernel missing",
        1,
        &["kernel", "/missing", "No such file"],
    )
    .with_kvm(),
    refused(
        "bulkhead run --name g --kernel empty",
        1,
        &["/empty is empty"],
    )
    .with_kvm(),
    refused(
        "bulkhead run --name g --kernel truncated-elf",
        1,
        &["/truncated-elf is truncated"],
    )
    .with_kvm(),
    refused(
        "bulkhead run --name g --kernel text",
        1,
        &["/text is not a kernel"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --initramfs missing",
        1,
        &["initramfs missing", "No such file"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --memory size=64M --initramfs large",
        1,
        &["initramfs large does not fit", "memory"],
    )
    .with_kvm(),
    refused(
        "bulkhead run --name g --kernel guest --memory 64M --initramfs large",
        1,
        &["/large does not fit", "memory"],
    )
    .with_kvm(),
];

const MEMORY_AND_CPUS: &[Case] = &[
    refused(
        "bulkhead-vmm --kernel guest --memory size=0",
        2,
        &["--memory", "2M to"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --memory size=2097153",
        2,
        &["--memory", "page size, 4096"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --memory size=31T",
        1,
        &["--memory", "the host has"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --memory size=much",
        2,
        &["--memory", "size=much"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --memory size=99999999T",
        2,
        &["--memory", "size=99999999T"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --memory 0",
        2,
        &["--memory", "2M to"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --memory 2097153",
        2,
        &["--memory", "page size, 4096"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --memory 31T",
        1,
        &["--memory", "the host has"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --memory much",
        2,
        &["--memory", "much"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --cpus boot=0",
        2,
        &["--cpus", "1 to 255"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --cpus boot=256",
        2,
        &["--cpus", "1 to 255"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --cpus boot=4294967297",
        2,
        &["--cpus", "4294967297"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --cpus 0",
        2,
        &["--cpus", "1 to 255"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --cpus 256",
        2,
        &["--cpus", "1 to 255"],
    ),
];

const SOCKETS: &[Case] = &[
    // The monitor connects to it.
    refused(
        "bulkhead-vmm --kernel guest --disk vhost_user=on,socket=missing",
        1,
        &["--disk: missing", "no such socket"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --net vhost_user=on,socket=missing",
        1,
        &["--net: missing", "no such socket"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --vhost-user type=26,socket=missing",
        1,
        &["--vhost-user: missing", "no such socket"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --disk vhost_user=on,socket=text",
        1,
        &["--disk: text", "not a socket"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --disk vhost_user=on,socket=LONG",
        1,
        &["--disk: xxx", "too long", "107"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --disk vhost_user=on,socket=http",
        1,
        &["--disk: http", "not vhost-user"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --disk vhost_user=on,socket=noise",
        1,
        &["--disk: noise", "not vhost-user"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --disk vhost_user=on,socket=silent",
        1,
        &["--disk: silent", "did not answer"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --disk vhost_user=on,socket=hangs-up",
        1,
        &["--disk: hangs-up", "closed the connection"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --disk vhost_user=on,socket=noise-packets",
        1,
        &["--disk: noise-packets", "not vhost-user"],
    )
    .with_kvm(),
    // The programs listen on it.
    refused(
        "bulkhead-vmm --kernel guest --api-socket path=missing/s",
        1,
        &["--api-socket", "missing/s", "No such file"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --api-socket path=text",
        1,
        &["--api-socket", "text"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --api-socket path=LONG",
        1,
        &["--api-socket", "xxx", "107"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --serial socket=missing/s",
        1,
        &["--serial", "missing/s", "No such file"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --serial file=missing/f",
        1,
        &["--serial", "missing/f", "No such file"],
    )
    .with_kvm(),
    refused(
        "bulkhead-block --format raw --blk-file disk.raw --socket-path missing/s",
        1,
        &["missing/s", "No such file"],
    ),
    refused(
        "bulkhead-block --format raw --blk-file disk.raw --socket-path text",
        1,
        &["text exists and is not a socket"],
    ),
    refused(
        "bulkhead-block --format raw --blk-file disk.raw --socket-path LONG",
        1,
        &["socket path xxx", "120 bytes", "107"],
    ),
    refused(
        "bulkhead-block --format raw --blk-file disk.raw --fd 77",
        1,
        &["--fd 77"],
    ),
    refused(
        "bulkhead-net --tap tap0 --socket-path missing/s",
        1,
        &["missing/s", "No such file"],
    ),
    refused(
        "bulkhead-net --tap tap0 --socket-path text",
        1,
        &["text exists and is not a socket"],
    ),
    refused(
        "bulkhead-net --tap tap0 --socket-path LONG",
        1,
        &["socket path xxx", "120 bytes", "107"],
    ),
    refused(
        "bulkhead-net-helper --network default --socket-path text",
        1,
        &["/text exists and is not a socket"],
    ),
    refused(
        "bulkhead-net-helper --network default --socket-path LONG",
        1,
        &["/xxx", "107"],
    ),
    refused(
        "env XDG_RUNTIME_DIR=/run/LONG bulkhead run --name g --kernel guest",
        1,
        &["/run/xxx", "too long", "XDG_RUNTIME_DIR"],
    )
    .when(Setting::OtherUser),
    refused(
        "env -u XDG_RUNTIME_DIR bulkhead run --name g --kernel guest",
        1,
        &["XDG_RUNTIME_DIR"],
    )
    .when(Setting::OtherUser),
];

const IMAGES: &[Case] = &[
    refused(
        "bulkhead-block --socket-path s --format raw --blk-file missing.raw",
        1,
        &["missing.raw", "No such file"],
    ),
    refused(
        "bulkhead-block --socket-path s --format raw --blk-file folder",
        1,
        &["folder", "Is a directory"],
    ),
    refused(
        "bulkhead-block --socket-path s --format qcow2 --blk-file disk.raw",
        1,
        &["disk.raw", "not in qcow2 format"],
    ),
    refused(
        "bulkhead-block --socket-path s --format qcow2 --blk-file empty",
        1,
        &["empty", "not in qcow2 format"],
    ),
    refused(
        "bulkhead-block --socket-path s --format qcow2 --blk-file orphan.qcow2",
        1,
        &["orphan.qcow2", "gone.qcow2", "No such file"],
    ),
    refused(
        "bulkhead-block --socket-path s --format qcow2 --blk-file loop.qcow2",
        1,
        &["loop.qcow2", "chain loops"],
    ),
    refused(
        "bulkhead-block --socket-path s --format qcow2 --blk-file undeclared.qcow2",
        1,
        &["undeclared.qcow2", "format"],
    ),
    refused(
        "bulkhead-block --socket-path s --blk-file disk.raw",
        2,
        &["disk.raw", "--format raw or --format qcow2"],
    ),
    refused(
        "bulkhead-block --socket-path s --format vmdk --blk-file disk.raw",
        2,
        &["--format", "vmdk"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --disk missing.raw",
        1,
        &["vda", "missing.raw", "No such file"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --disk disk.raw,format=qcow2",
        1,
        &["disk.raw", "not in qcow2 format"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --disk disk.raw --disk orphan.qcow2",
        1,
        &["vdb", "orphan.qcow2", "gone.qcow2", "No such file"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --disk loop.qcow2",
        1,
        &["loop.qcow2", "chain loops"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --disk text",
        2,
        &["text", ",format=raw or ,format=qcow2"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --disk disk.raw,format=vmdk",
        2,
        &["--disk", "vmdk"],
    ),
    refused(
        "image-tool info missing.raw",
        1,
        &["missing.raw", "No such file"],
    ),
    refused(
        "image-tool check -f qcow2 disk.raw",
        1,
        &["disk.raw", "not in qcow2 format"],
    ),
    refused(
        "image-tool convert -f raw -O qcow2 missing.raw new",
        1,
        &["missing.raw", "No such file"],
    ),
    refused(
        "image-tool convert -f qcow2 -O raw disk.raw new",
        1,
        &["disk.raw", "not in qcow2 format"],
    ),
    refused(
        "image-tool convert -f qcow2 -O raw orphan.qcow2 new",
        1,
        &["orphan.qcow2", "gone.qcow2", "No such file"],
    ),
    refused(
        "image-tool convert -f qcow2 -O raw loop.qcow2 new",
        1,
        &["loop.qcow2", "infinite loop"],
    ),
];

const NETWORKS: &[Case] = &[
    refused(
        "bulkhead-net --socket-path s --tap sixteen-letters-",
        2,
        &["--tap", "sixteen-letters-", "15 bytes"],
    ),
    refused(
        "bulkhead-net --socket-path s --tap lo",
        1,
        &["lo", "not a TAP device"],
    ),
    refused(
        "bulkhead-net --socket-path s --tap-fd 77",
        1,
        &["--tap-fd 77"],
    ),
    refused(
        "bulkhead-net --socket-path s --tap-fd 0",
        1,
        &["--tap-fd 0"],
    ),
    refused(
        "bulkhead-net-helper --network name=n,bridge=sixteen-letters-",
        2,
        &["--network", "sixteen-letters-", "15 bytes"],
    ),
    refused(
        "bulkhead-net-helper --network name=n,subnet=10.0.0.0/33",
        2,
        &["--network", "10.0.0.0/33"],
    ),
    refused(
        "bulkhead-net-helper --network default --network default",
        2,
        &["--network", "default", "twice"],
    ),
    refused(
        "bulkhead-net-helper --network name=n,subnet=10.1.0.0/24,bridge=lo",
        1,
        &["lo", "bridge="],
    ),
    refused(
        "bulkhead-net-helper --network default",
        1,
        &["192.168.124.0/24", "in use", "in-use0", "subnet="],
    )
    .when(Setting::SubnetInUse),
    refused(
        "bulkhead run --name g --kernel guest --net default",
        1,
        &["192.168.124.0/24", "in use", "in-use0", "subnet="],
    )
    .when(Setting::SubnetInUse),
    refused(
        "bulkhead-net-helper --network default",
        1,
        &["dnsmasq is not installed", "dnsmasq-base", "dhcp=off"],
    )
    .when(Setting::NoDnsmasq),
    // The helper does not run, or another program has its socket.
    refused(
        "bulkhead-net --socket-path s --network default",
        1,
        &[
            "bulkhead-net-helper is not running",
            "/run/bulkhead/net-helper.sock",
        ],
    ),
    refused(
        "bulkhead-net --socket-path s --network default --helper-socket missing",
        1,
        &["bulkhead-net-helper is not running", "missing"],
    ),
    refused(
        "bulkhead-net --socket-path s --network default --helper-socket text",
        1,
        &["bulkhead-net-helper is not running", "text"],
    ),
    refused(
        "bulkhead-net --socket-path s --network default --helper-socket LONG",
        1,
        &["xxx", "107"],
    ),
    refused(
        "bulkhead-net --socket-path s --network default --helper-socket http",
        1,
        &["http", "not of bulkhead-net-helper"],
    ),
    refused(
        "bulkhead-net --socket-path s --network default --helper-socket noise-packets",
        1,
        &["noise-packets", "bulkhead-net-helper", "not a message"],
    ),
    refused(
        "bulkhead-net --socket-path s --network default --helper-socket silent-packets",
        1,
        &["silent-packets", "bulkhead-net-helper", "not answered"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --net default --helper-socket missing",
        1,
        &["bulkhead-net-helper is not running", "missing"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --net default --helper-socket text",
        1,
        &["bulkhead-net-helper is not running", "text"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --net default --helper-socket LONG",
        1,
        &["xxx"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --net default --helper-socket http",
        1,
        &["net0", "http", "not of bulkhead-net-helper"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --net default",
        1,
        &["bulkhead-net-helper is not running", "start it as root"],
    )
    .when(Setting::OtherUser),
    refused(
        "bulkhead run --name g --kernel guest --net default,model=e1000",
        2,
        &["--net", "model=e1000"],
    ),
];

#[test]
fn bad_input_is_told_in_one_line_and_leaves_nothing() {
    const NAME: &str = "bad_input_is_told_in_one_line_and_leaves_nothing";
    in_own_namespaces(NAME, || {
        let place = Place::new();
        let kvm = bulkhead_tests::guest::kvm_is_usable(NAME);
        let groups = [
            USAGE,
            KVM,
            KERNEL,
            MEMORY_AND_CPUS,
            SOCKETS,
            IMAGES,
            NETWORKS,
        ];
        let mut complaints = Vec::new();
        let mut skipped = 0;
        for case in groups.into_iter().flatten() {
            if case.needs_kvm && !kvm {
                skipped += 1;
                continue;
            }
            // All of them before it fails, so that one run shows all that is wrong.
            complaints.extend(place.complaint(case));
        }
        if skipped > 0 {
            eprintln!("skipped: {NAME}: {skipped} cases that need KVM");
        }
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    });
}
