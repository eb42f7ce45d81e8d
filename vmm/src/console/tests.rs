use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bulkhead_devices::BusDevice;
use rustix::fs::{CWD, Mode};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::output::PENDING_MAX;
use super::*;

struct Port {
    console: Console,
    serial: Arc<Serial>,
    folder: tempfile::TempDir,
}

impl Port {
    fn new(config: impl FnOnce(PathBuf) -> SerialConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path().join("serial"));
        Self::open(folder, &config)
    }

    fn open(folder: tempfile::TempDir, config: &SerialConfig) -> Self {
        let mut console = Console::open(config, &Broker::none()).unwrap().unwrap();
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let serial = Arc::new(Serial::new(irq, console.writer()).unwrap());
        console.start(&serial, || ()).unwrap();
        Self {
            console,
            serial,
            folder,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("serial")
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path()).unwrap()
    }

    fn write(&self, bytes: &[u8]) {
        self.console.writer().write_all(bytes).unwrap();
    }
}

fn socket(socket: PathBuf) -> SerialConfig {
    SerialConfig::Socket { socket }
}

fn file(file: PathBuf) -> SerialConfig {
    SerialConfig::File { file }
}

#[test]
fn a_socket_gets_what_was_written_before_it_connected() {
    let port = Port::new(socket);
    port.write(b"early ");
    let mut client = port.connect();
    port.write(b"late");
    let mut seen = [0; 10];
    client.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"early late");
}

#[test]
fn a_reader_that_does_not_read_never_holds_the_guest_up_and_catches_up_later() {
    let port = Port::new(socket);
    let mut client = port.connect();
    let line = [b'x'; 1024];
    for _ in 0..2 * PENDING_MAX / line.len() {
        port.write(&line);
    }
    port.write(b"the end");
    let mut seen = Vec::new();
    while !seen.ends_with(b"the end") {
        let mut bytes = [0; 4096];
        let len = client.read(&mut bytes).unwrap();
        seen.extend_from_slice(&bytes[..len]);
    }
    assert!(seen.len() < 2 * PENDING_MAX, "the oldest was lost");
}

#[test]
fn the_next_client_is_served_when_the_first_has_gone_whether_or_not_it_reads() {
    let port = Port::new(socket);
    for number in 0..3_u8 {
        let mut client = port.connect();
        client.write_all(&[number]).unwrap();
        let mut byte = [0];
        while byte != [number] {
            port.serial.read(0, &mut byte);
        }
        // Far more than the socket holds: the thread that writes waits for this client.
        port.write(&vec![b'x'; PENDING_MAX]);
    }
}

#[test]
fn a_fifo_that_nobody_reads_keeps_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial");
    rustix::fs::mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
    let port = Port::open(folder, &file(path.clone()));
    port.write(&vec![b'x'; PENDING_MAX]);
    let start = Instant::now();
    port.console.finish();
    assert!(start.elapsed() < Duration::from_secs(10));

    let mut reader = std::fs::File::open(path).unwrap();
    reader.read_exact(&mut vec![0; PENDING_MAX]).unwrap();
}

#[test]
fn a_disk_that_is_full_takes_the_output_and_the_last_words_are_written() {
    let full = Port::new(|_| file("/dev/full".into()));
    full.write(&vec![b'x'; PENDING_MAX]);
    full.console.finish();

    let port = Port::new(file);
    port.write(&vec![b'x'; PENDING_MAX]);
    port.console.finish();
    assert_eq!(std::fs::read(port.path()).unwrap().len(), PENDING_MAX);
}
