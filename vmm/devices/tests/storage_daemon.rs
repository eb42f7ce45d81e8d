//! The frontend against a backend that is not ours: QEMU's storage daemon, with vrings laid out in guest memory by the
//! test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says so when something is wrong

mod guest;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_devices::Lifecycle;
use bulkhead_devices::vhost_user::TYPE_BLOCK;
use bulkhead_devices::virtio::{F_VERSION_1, VirtioDevice};
use rustix::process::{Pid, Signal, kill_process};
use vm_memory::GuestMemoryMmap;

use guest::{BlockGuest, Events, guest_memory};

const SECTORS: u64 = 2048;

/// A storage daemon that exports one raw image.
struct Daemon {
    child: Child,
}

impl Daemon {
    fn start(folder: &Path) -> Self {
        let image = folder.join("image");
        if !image.exists() {
            let content: Vec<u8> = (0..SECTORS * 512).map(|n| (n / 512) as u8).collect();
            fs::write(&image, content).unwrap();
        }
        let socket = socket(folder);
        let _ = fs::remove_file(&socket);
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=file,filename={}", image.display()))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=file,addr.type=unix,addr.path={},writable=on,num-queues=2",
                socket.display()
            ))
            .arg("--chardev")
            .arg(format!("socket,id=monitor,path={},server=on,wait=off", monitor(folder).display()))
            .arg("--monitor")
            .arg("chardev=monitor")
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon (package qemu-utils)");
        wait("the socket", || socket.exists());
        Self { child }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("socket")
}

fn monitor(folder: &Path) -> PathBuf {
    folder.join("monitor")
}

/// A connection to the daemon's monitor (QEMU Machine Protocol). One for each daemon: it takes one at a time, and may
/// close the next with the last.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn connect(folder: &Path) -> Self {
        let stream = UnixStream::connect(monitor(folder)).unwrap();
        let mut monitor = Self(BufReader::new(stream));
        monitor.line("the connection");
        monitor.order(r#"{"execute": "qmp_capabilities"}"#);
        monitor
    }

    /// Has the daemon execute a command of its protocol.
    fn order(&mut self, command: &str) {
        self.0.get_mut().write_all(command.as_bytes()).unwrap();
        let mut line = self.line(command);
        // Events come between.
        while line.contains("\"event\"") {
            line = self.line(command);
        }
        assert!(line.contains("return"), "{line}");
    }

    fn line(&mut self, after: &str) -> String {
        let mut line = String::new();
        let length = self.0.read_line(&mut line).unwrap();
        assert!(length > 0, "the daemon closed its monitor after {after}");
        line
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until the daemon has taken the queue: it dies of a resize that comes while it is about to watch one (a null
/// context in `aio_set_fd_handler`).
fn settle(guest: &mut BlockGuest) {
    assert_eq!(guest.read(1), sector(1));
}

fn connect(folder: &Path, events: &Arc<Events>) -> BlockGuest {
    connect_with(folder, events, guest_memory(0))
}

fn connect_with(folder: &Path, events: &Arc<Events>, memory: GuestMemoryMmap) -> BlockGuest {
    let ram = memory.clone();
    let frontend = guest::connect(&socket(folder), TYPE_BLOCK, 64, events, ram).unwrap();
    BlockGuest::new(frontend, memory)
}

fn sector(number: u64) -> Vec<u8> {
    vec![number as u8; 512]
}

#[test]
fn a_disk_is_found_read_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let _daemon = Daemon::start(folder.path());
    let mut guest = connect(folder.path(), &Arc::default());
    let mut capacity = [0; 8];
    guest.frontend.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SECTORS);
    assert_ne!(guest.frontend.features() & F_VERSION_1, 0);
    assert_eq!(guest.frontend.queue_max_sizes(), [64]);

    guest.activate();

    assert_eq!(guest.read(7), sector(7));
    guest.write(9, &[0xab; 512]);
    assert_eq!(guest.read(9), [0xab; 512]);
    guest.flush();
    let image = fs::read(folder.path().join("image")).unwrap();
    assert_eq!(image[9 * 512..10 * 512], [0xab; 512]);
    assert_eq!(image[10 * 512..11 * 512], sector(10));
}

#[test]
fn every_request_is_interrupted_for_and_the_ring_wraps() {
    let folder = tempfile::tempdir().unwrap();
    let _daemon = Daemon::start(folder.path());
    let mut guest = connect(folder.path(), &Arc::default());
    guest.activate();
    for number in 0..300 {
        assert_eq!(guest.read(number % SECTORS), sector(number));
    }
}

#[test]
fn a_reset_takes_the_queues_back_and_the_next_driver_starts_afresh() {
    let folder = tempfile::tempdir().unwrap();
    let _daemon = Daemon::start(folder.path());
    let mut guest = connect(folder.path(), &Arc::default());
    for round in 0..5 {
        guest.activate();
        assert_eq!(guest.read(round), sector(round));
        guest.reset();
        guest.reset();
        // Nobody works on the ring now.
        guest.submit_read(3);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(guest.answered(), 0);
    }
}

#[test]
fn a_backend_that_dies_is_a_pause_for_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(folder.path());
    let events = Arc::<Events>::default();
    let mut guest = connect(folder.path(), &events);
    guest.activate();
    for round in 0..3 {
        assert_eq!(guest.read(round), sector(round));

        // The backend dies before it takes the request.
        daemon.signal(Signal::STOP);
        guest.submit_read(100 + round);
        daemon.kill();
        wait("the loss", || events.lost() == round + 1);
        assert_eq!(guest.answered(), 0);
        daemon = Daemon::start(folder.path());

        assert_eq!(guest.finish_read(), sector(100 + round));
        wait("the return", || events.back() == round + 1);
    }
    guest.write(1, &[0xcd; 512]);
    guest.flush();
    let image = fs::read(folder.path().join("image")).unwrap();
    assert_eq!(image[512..1024], [0xcd; 512]);
}

#[test]
fn a_paused_disk_answers_once_it_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    let events = Arc::<Events>::default();
    let mut guest = connect(folder.path(), &events);
    guest.activate();
    for round in 0..20 {
        guest.frontend.pause();
        guest.frontend.resume();
        assert_eq!(guest.read(round), sector(round));
    }

    // A backend that comes while the device is paused gets no vring.
    guest.frontend.pause();
    daemon.kill();
    wait("the loss", || events.lost() == 1);
    let _daemon = Daemon::start(folder.path());
    wait("the return", || events.back() == 1);
    guest.submit_read(100);
    assert_eq!(guest.answered(), 0);
    guest.frontend.resume();
    assert_eq!(guest.finish_read(), sector(100));
}

#[test]
fn a_driver_may_start_and_stop_while_there_is_no_backend() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    let events = Arc::<Events>::default();
    let mut guest = connect(folder.path(), &events);
    daemon.kill();
    fs::remove_file(socket(folder.path())).unwrap();
    wait("the loss", || events.lost() == 1);

    guest.activate();
    guest.reset();
    guest.activate();
    guest.submit_read(5);
    let mut capacity = [0; 8];
    guest.frontend.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SECTORS);
    let _daemon = Daemon::start(folder.path());

    assert_eq!(guest.finish_read(), sector(5));
}

#[test]
fn a_successor_that_offers_less_is_refused_and_the_next_one_taken() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    let events = Arc::<Events>::default();
    let mut guest = connect(folder.path(), &events);
    guest.activate();
    daemon.signal(Signal::STOP);
    guest.submit_read(5);
    daemon.kill();

    // Not a backend at all: it closes every connection.
    let path = socket(folder.path());
    fs::remove_file(&path).unwrap();
    let impostor = std::os::unix::net::UnixListener::bind(&path).unwrap();
    drop(impostor.accept().unwrap());
    drop(impostor.accept().unwrap());
    assert_eq!(guest.answered(), 0);
    drop(impostor);
    let _daemon = Daemon::start(folder.path());

    assert_eq!(guest.finish_read(), sector(5));
    assert_eq!(events.unusable(), ["the backend closed the connection"]);
}

#[test]
fn a_guest_is_notified_of_a_disk_that_grows() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    let events = Arc::<Events>::default();
    let mut guest = connect(folder.path(), &events);
    guest.activate();
    settle(&mut guest);
    let mut monitor = Monitor::connect(folder.path());
    for (round, size) in [(1, 2), (2, 3)] {
        monitor.order(&format!(
            r#"{{"execute": "block_resize", "arguments": {{"node-name": "file", "size": {}}}}}"#,
            size << 20
        ));
        wait("the news", || events.config_changes() == round);
        let mut capacity = [0; 8];
        guest.frontend.read_config(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), (size << 20) / 512);
    }
    assert_eq!(guest.read(5000), [0; 512]);

    // A backend that came back notifies of changes, too.
    daemon.kill();
    let _daemon = Daemon::start(folder.path());
    wait("the return", || events.back() == 1);
    settle(&mut guest);
    Monitor::connect(folder.path()).order(
        r#"{"execute": "block_resize", "arguments": {"node-name": "file", "size": 1048576}}"#,
    );
    wait("the news", || events.config_changes() == 3);
}

#[test]
fn memory_in_more_regions_than_one_table_holds_is_shared() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    let events = Arc::<Events>::default();
    let mut guest = connect_with(folder.path(), &events, guest_memory(18));
    guest.activate();
    assert_eq!(guest.read(7), sector(7));
    daemon.kill();
    let _daemon = Daemon::start(folder.path());
    assert_eq!(guest.read(8), sector(8));
}
