//! `bulkhead-block` beside QEMU's storage daemon, with the same frontend and the same images: requests a second, and processor time of
//! the server for each. The latter is the figure to look at on a machine that has other work.
//!
//! `cargo bench -p bulkhead-block [-- raw]`

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/peer/mod.rs"]
mod peer;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use peer::{Backend, Guest};
use qcow::{CreateOptions, Format, Image, OpenOptions};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

const DISK: u64 = 256 << 20;
const DEPTH: u16 = 32;

#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    write: bool,
    length: u32,
    requests: u32,
    /// Every block once, in an order that is not the disk's; or block after block.
    scattered: bool,
}

const LOADS: [Load; 4] = [
    Load {
        name: "read 4k",
        write: false,
        length: 4096,
        requests: 60_000,
        scattered: true,
    },
    Load {
        name: "write 4k",
        write: true,
        length: 4096,
        requests: 60_000,
        scattered: true,
    },
    Load {
        name: "read 128k",
        write: false,
        length: 128 << 10,
        requests: 8_000,
        scattered: false,
    },
    Load {
        name: "write 128k",
        write: true,
        length: 128 << 10,
        requests: 2_000,
        scattered: false,
    },
];

enum Server {
    Bulkhead(Backend),
    Qemu(Child),
}

impl Server {
    fn bulkhead(image: &Path, format: Format) -> Self {
        Self::Bulkhead(Backend::start(image, format.name(), &[]))
    }

    /// `None` if it is not installed.
    fn qemu(image: &Path, format: Format, socket: &Path) -> Option<Self> {
        let (image, address) = (image.display(), socket.display());
        let mut child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!(
                "{},node-name=disk,file.driver=file,file.filename={image},discard=unmap",
                format.name()
            ))
            .arg("--export")
            .arg(format!(
                "vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=unix,addr.path={address}"
            ))
            .stdin(Stdio::null())
            .spawn()
            .ok()?;
        let start = Instant::now();
        while !socket.exists() {
            assert!(start.elapsed() < peer::PATIENCE);
            assert!(child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self::Qemu(child))
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Bulkhead(backend) => backend.child.id(),
            Self::Qemu(child) => child.id(),
        }
    }

    /// Processor time so far.
    fn time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u64 = fields[11..13]
            .iter()
            .map(|field| field.parse::<u64>().unwrap())
            .sum();
        Duration::from_millis(ticks * 10)
    }

    /// Memory of its own and its share of what is shared, guest memory left out, in KiB.
    fn memory(&self) -> u64 {
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps", self.pid())).unwrap();
        let mut is_guest = false;
        let mut sum = 0;
        for line in maps.lines() {
            if let Some(size) = line.strip_prefix("Pss:") {
                let size = size.split_whitespace().next().unwrap();
                sum += if is_guest {
                    0
                } else {
                    size.parse().unwrap_or(0)
                };
            } else if line.contains(" rw-s ") || line.contains(" r--p ") || line.contains("-p ") {
                is_guest = line.contains("memfd:guest");
            }
        }
        sum
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Self::Qemu(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Does the load with `DEPTH` requests under way at any time.
fn drive(guest: &mut Guest, load: Load) -> Duration {
    let blocks = DISK / u64::from(load.length);
    let kind = if load.write {
        VIRTIO_BLK_T_OUT
    } else {
        VIRTIO_BLK_T_IN
    };
    let place = |number: u32| {
        let number = u64::from(number);
        let block = if load.scattered {
            number.wrapping_mul(0x9e37_79b1) % blocks
        } else {
            number % blocks
        };
        block * u64::from(load.length) / 512
    };
    let start = Instant::now();
    let mut slots = std::collections::HashMap::new();
    let mut posted = 0;
    let mut done = 0;
    let mut idle: Vec<u64> = (0..u64::from(DEPTH)).collect();
    while done < load.requests {
        let mut kicked = false;
        while posted < load.requests
            && let Some(slot) = idle.pop()
        {
            let what = (kind, place(posted));
            let head = guest.post_block(0, slot, what, (load.length, !load.write));
            slots.insert(u32::from(head), slot);
            posted += 1;
            kicked = true;
        }
        if kicked {
            guest.kick(0);
        }
        for (head, _) in guest.wait_used(0, 1) {
            let slot = slots.remove(&head).unwrap();
            assert_eq!(guest.status(slot), 0);
            guest.reuse(0, guest.chain(0, head as u16));
            idle.push(slot);
            done += 1;
        }
    }
    start.elapsed()
}

fn measure(server: &Server, guest: &mut Guest, load: Load) -> String {
    let before = server.time();
    let elapsed = drive(guest, load);
    let used = server.time() - before;
    format!(
        "{:>9.0}/s {:>7.2} us",
        f64::from(load.requests) / elapsed.as_secs_f64(),
        used.as_secs_f64() * 1e6 / f64::from(load.requests)
    )
}

fn make(path: &Path, format: Format, full: bool) {
    qcow::create(path, &CreateOptions::new(format, DISK)).unwrap();
    if full {
        let image = Image::open(path, &OpenOptions::new(format).writable(true)).unwrap();
        for at in (0..DISK).step_by(1 << 20) {
            image.write_at(at, &vec![at as u8 | 1; 1 << 20]).unwrap();
        }
        image.close().unwrap();
    }
}

fn main() {
    let wanted = std::env::args()
        .nth(1)
        .filter(|word| !word.starts_with('-'));
    println!(
        "{:<24}{:<28}{:<28}",
        "", "bulkhead-block", "qemu-storage-daemon"
    );
    for (name, format, full) in [
        ("raw", Format::Raw, true),
        ("qcow2", Format::Qcow2, true),
        ("qcow2 new", Format::Qcow2, false),
    ] {
        if wanted.as_ref().is_some_and(|wanted| wanted != name) {
            continue;
        }
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut columns: Vec<Vec<String>> = Vec::new();
        for ours in [true, false] {
            let image = folder.path().join(format!("disk-{ours}"));
            make(&image, format, full);
            let socket = folder.path().join("qsd.sock");
            let server = if ours {
                Some(Server::bulkhead(&image, format))
            } else {
                Server::qemu(&image, format, &socket)
            };
            let Some(server) = server else { continue };
            let mut guest = match &server {
                Server::Bulkhead(backend) => Guest::connect_to(&backend.socket, 1),
                Server::Qemu(_) => Guest::connect_to(&socket, 1),
            };
            guest.start();
            let mut column: Vec<String> = LOADS
                .iter()
                .filter(|load| full || load.write)
                .map(|&load| measure(&server, &mut guest, load))
                .collect();
            column.push(format!("{:>9} KiB", server.memory()));
            columns.push(column);
        }
        let mut names: Vec<&str> = LOADS
            .iter()
            .filter(|load| full || load.write)
            .map(|load| load.name)
            .collect();
        names.push("memory");
        for (row, load) in names.iter().enumerate() {
            let cell = |column: &Vec<String>| format!("{:<28}", column[row]);
            let cells: String = columns.iter().map(cell).collect();
            println!("{:<24}{cells}", format!("{name}, {load}"));
        }
    }
}
