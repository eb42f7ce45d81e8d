//! The helper in place of `qemu-bridge-helper`, started by QEMU.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::host::{attempt, eventually, on_own_host, run};

const PROGRAM: &str = env!("CARGO_BIN_EXE_bulkhead-net-helper");

/// Gives this test an `/etc/bulkhead/bridge.conf` with this content. Returns `false` where that is not allowed.
fn rules(test: &str, text: &str) -> bool {
    // The test has a mount namespace of its own, so nobody else sees what is mounted over /etc.
    let over = "mount --make-rprivate / && mkdir -p /tmp/o && mount -t tmpfs o /tmp/o && mkdir /tmp/o/u /tmp/o/w && \
                mount -t overlay -o lowerdir=/etc,upperdir=/tmp/o/u,workdir=/tmp/o/w overlay /etc && mkdir -p /etc/bulkhead";
    if !attempt(over).status.success() {
        eprintln!("skipped: {test}: no overlay file system here");
        return false;
    }
    std::fs::write("/etc/bulkhead/bridge.conf", text).unwrap();
    true
}

#[test]
fn qemu_gets_a_device_on_a_bridge_that_is_allowed() {
    const TEST: &str = "bridge_helper::qemu_gets_a_device_on_a_bridge_that_is_allowed";
    on_own_host(TEST, || {
        if !attempt("command -v qemu-system-x86_64").status.success() {
            return eprintln!("skipped: {TEST}: qemu-system-x86_64 is not installed");
        }
        if !rules(TEST, "allow br7\n") {
            return;
        }
        run("ip link add br7 type bridge && ip link set br7 mtu 1400 up");
        let mut qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-nodefaults", "-display", "none", "-S"])
            .args(["-netdev", &format!("bridge,id=n,br=br7,helper={PROGRAM}")])
            .args(["-device", "virtio-net-pci,netdev=n"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();

        eventually("a port on the bridge", || {
            run("ip -o link").contains("master br7")
        });

        let port = run("ip -o link | grep 'master br7'");
        assert!(
            port.contains(": tap0: ") && port.contains("mtu 1400") && port.contains("ether fe:"),
            "{port}"
        );
        assert!(qemu.try_wait().unwrap().is_none());
        qemu.kill().unwrap();
        qemu.wait().unwrap();
        assert!(
            !run("ip -o link").contains("tap0"),
            "it goes with who has it"
        );
    });
}

#[test]
fn other_bridges_are_refused_and_nothing_is_made() {
    const TEST: &str = "bridge_helper::other_bridges_are_refused_and_nothing_is_made";
    on_own_host(TEST, || {
        if !rules(TEST, "allow all\ndeny br8\n") {
            return;
        }
        run("ip link add br8 type bridge; ip link add v0 type veth peer name v1");
        for (bridge, why) in [
            (
                "br8",
                "bridge br8 may not be joined: /etc/bulkhead/bridge.conf does not allow it",
            ),
            ("br9", "there is no bridge br9 on this host"),
            ("v0", "v0 is not a bridge"),
        ] {
            let output = attempt(&format!("{PROGRAM} --br={bridge} --fd=0 --use-vnet"));
            assert_eq!(output.status.code(), Some(1));
            assert_eq!(
                String::from_utf8_lossy(&output.stderr),
                format!("error: {why}\n")
            );
        }
        std::fs::remove_file("/etc/bulkhead/bridge.conf").unwrap();
        let output = attempt(&format!("{PROGRAM} --br=br8 --fd=0"));
        assert!(
            String::from_utf8_lossy(&output.stderr)
                .contains("cannot read /etc/bulkhead/bridge.conf")
        );
        assert!(!run("ip -o link").contains("tap"));
    });
}

#[test]
fn a_set_user_id_helper_does_nothing_else() {
    on_own_host(
        "bridge_helper::a_set_user_id_helper_does_nothing_else",
        || {
            let folder = tempfile::tempdir().unwrap();
            std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))
                .unwrap();
            let copy = folder.path().join("helper");
            std::fs::copy(PROGRAM, &copy).unwrap();
            std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o4755)).unwrap();
            let (copy, socket) = (copy.display(), folder.path().join("s"));
            let stranger = |arguments: &str| {
                attempt(&format!(
                    "setpriv --reuid 4711 --regid 4711 --clear-groups {copy} {arguments}"
                ))
            };

            let served = stranger(&format!("--socket-path {}", socket.display()));
            assert_eq!(
                String::from_utf8_lossy(&served.stderr),
                "error: a set-user-ID bulkhead-net-helper does --br and nothing else\n"
            );
            // These would let a user start any program as root.
            for flag in ["--dnsmasq-init", "--keep-dnsmasq", "--exec-dnsmasq"] {
                let refused = stranger(&format!(
                    "{flag} {} /usr/bin/id </dev/null",
                    socket.display()
                ));
                assert_eq!(refused.status.code(), Some(2), "{flag}: no such option");
            }
        },
    );
}
