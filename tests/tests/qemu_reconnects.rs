//! QEMU on our backends: what its guest's reboot, its own end and the death of a backend come to, as the backends'
//! pages say.
#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::ffi::OsString;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_tests::guest::{
    Backend, Format, Image, Machine, in_own_namespace, ip, is_installed, serve_inverted,
};

const QEMU: &str = "qemu-system-x86_64";
const IMAGE_SIZE: usize = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// The QEMU words that a backend's page shows, for a socket in `folder`.
fn words_of(page: &str, folder: &Path) -> Vec<OsString> {
    let line = page
        .lines()
        .find(|line| line.contains("-chardev socket") && line.contains("-device"))
        .unwrap();
    let here = format!("{}/", folder.display());
    let words = line.split_whitespace().filter(|word| *word != "\\");
    words
        .map(|word| word.replace("/run/", &here).into())
        .collect()
}

fn page_of(program: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::read_to_string(folder.join("backends").join(program).join("README.md")).unwrap()
}

fn without_reconnect(words: &[OsString]) -> Vec<OsString> {
    let text = |word: &OsString| word.to_str().unwrap().replace(",reconnect-ms=100", "");
    words.iter().map(|word| text(word).into()).collect()
}

/// QEMU with a guest that may reboot, and its monitor.
struct Qemu {
    machine: Machine,
    monitor: BufReader<UnixStream>,
}

impl Qemu {
    fn start(test: &str, devices: &[OsString], folder: &Path) -> Self {
        let socket = folder.join("qmp");
        let _ = std::fs::remove_file(&socket);
        let monitor = format!("unix:{},server=on,wait=off", socket.display());
        let more = ["-action", "reboot=reset", "-qmp", &monitor].map(OsString::from);
        let machine = Machine::start_qemu(test, &[devices, &more].concat());
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(_) => assert!(start.elapsed() < PATIENCE, "QEMU did not start"),
            }
            thread::sleep(Duration::from_millis(5));
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut qemu = Self {
            machine,
            monitor: BufReader::new(stream),
        };
        // Its greeting.
        qemu.answer("QMP");
        qemu.ask("qmp_capabilities");
        qemu
    }

    fn answer(&mut self, wanted: &str) {
        let mut line = String::new();
        // Events come in between.
        while !line.contains(&format!("\"{wanted}\"")) {
            line.clear();
            let got = self.monitor.read_line(&mut line).unwrap();
            assert!(got > 0, "QEMU ended before it answered");
        }
    }

    fn ask(&mut self, command: &str) {
        let request = format!("{{\"execute\": \"{command}\"}}\n");
        self.monitor
            .get_mut()
            .write_all(request.as_bytes())
            .unwrap();
        self.answer("return");
    }

    /// Ends QEMU, not the guest.
    fn quit(mut self) {
        self.ask("quit");
        let (status, said) = self.machine.wait();
        assert!(status.success(), "{said}");
    }
}

/// A disk, its image and QEMU's words for it.
fn disk(folder: &Path, more: &[&str]) -> (Image, Backend, Vec<OsString>) {
    let image = Image::with_pattern(folder, "disk", Format::Qcow2, IMAGE_SIZE, 11);
    let backend = Backend::block(folder, "vda", &image, more);
    (image, backend, words_of(&page_of("block"), folder))
}

fn ended_well(backend: Backend) {
    let (status, said) = backend.wait();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));
}

#[test]
fn a_guest_reboots_and_its_disk_stays_without_persist() {
    const TEST: &str = "a_guest_reboots_and_its_disk_stays_without_persist";
    if !is_installed(QEMU, TEST) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (image, backend, words) = disk(folder.path(), &[]);
    // It connects once, and keeps the connection.
    let words = without_reconnect(&words);
    let guest = "test=blk-stress n=2000 span=4096";
    let mut qemu = Qemu::start(guest, &words, folder.path());
    for _ in 0..3 {
        qemu.machine.expect("blk-stress round=200");
        qemu.ask("system_reset");
    }
    qemu.machine.expect_end();
    ended_well(backend);
    image.check();
}

#[test]
fn a_guest_reboots_and_its_card_stays_without_persist() {
    const TEST: &str = "a_guest_reboots_and_its_card_stays_without_persist";
    if !is_installed(QEMU, TEST) {
        return;
    }
    in_own_namespace(TEST, || {
        ip("tuntap add tap0 mode tap vnet_hdr");
        ip("address add 10.9.0.1/24 dev tap0");
        ip("link set tap0 up");
        let _answers = serve_inverted("10.9.0.1:7");
        let folder = tempfile::tempdir().unwrap();
        // QEMU makes the configuration space itself, whatever the backend has in its own.
        let own = ["--tap", "tap0", "--mac", "52:54:00:99:99:99"];
        let backend = Backend::net(folder.path(), "net0", &own);
        let words = words_of(&page_of("net"), folder.path());
        let guest = "test=net ip=10.9.0.2 peer=10.9.0.1 n=100";
        let mut qemu = Qemu::start(guest, &words, folder.path());
        for _ in 0..2 {
            let mac = qemu.machine.expect("net mac");
            assert_eq!(mac.value("mac"), "52:54:00:4b:cf:f0");
            qemu.ask("system_reset");
        }
        let said = qemu.machine.expect_end();
        let lines: Vec<_> = said.lines().collect();
        assert!(
            matches!(lines[..], [line] if line.contains("supports VHOST_USER_PROTOCOL_F_CONFIG but QEMU does not")),
            "{said}"
        );
        ended_well(backend);
    });
}

#[test]
fn qemu_is_stopped_and_started_on_a_backend_that_persists() {
    const TEST: &str = "qemu_is_stopped_and_started_on_a_backend_that_persists";
    if !is_installed(QEMU, TEST) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (image, backend, words) = disk(folder.path(), &["--persist"]);
    for _ in 0..3 {
        Machine::start_qemu("test=blk-stress n=200", &words).expect_end();
    }
    drop(backend);
    image.check();

    let (_, backend, words) = disk(folder.path(), &[]);
    Machine::start_qemu("test=blk-stress n=200", &words).expect_end();
    ended_well(backend);
    let (status, said) = Machine::start_qemu("test=blk", &without_reconnect(&words)).wait();
    assert_eq!(status.code(), Some(1), "{said}");
}

/// Whether anybody connects there in this time.
fn is_reached(socket: &PathBuf, time: Duration) -> bool {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let start = Instant::now();
    while start.elapsed() < time {
        match listener.accept() {
            Ok(_) => return true,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn qemu_connects_again_with_reconnect_only_and_can_be_ended_without() {
    const TEST: &str = "qemu_connects_again_with_reconnect_only_and_can_be_ended_without";
    if !is_installed(QEMU, TEST) {
        return;
    }
    for reconnects in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let (_image, backend, words) = disk(folder.path(), &[]);
        let words = match reconnects {
            true => words,
            false => without_reconnect(&words),
        };
        let socket = backend.socket().to_owned();
        let guest = "test=blk-stress n=100000 reports=1000";
        let mut qemu = Qemu::start(guest, &words, folder.path());
        qemu.machine.expect("blk-stress round=100");
        backend.kill();
        let patience = match reconnects {
            true => PATIENCE,
            false => Duration::from_secs(2),
        };
        assert_eq!(is_reached(&socket, patience), reconnects);
        // The guest waits for its disk; QEMU itself does not.
        qemu.quit();
    }
}
