//! `bulkhead-block`, as it is by default, with io_uring for everything, and with threads for everything, beside QEMU's
//! storage daemon: with the same frontend and copies of the same image, each load in turn on all of them. Requests a
//! second, and processor time of the server for each, medians. The latter is the figure to look at on a machine that
//! has other work.
//!
//! `cargo bench -p bulkhead-block [-- [--json] [--rounds N] [raw|qcow2|new]…]`

#![allow(clippy::disallowed_macros, reason = "it prints what it measures")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/peer/mod.rs"]
mod peer;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use peer::{Backend, Guest};
use qcow::{CreateOptions, Format, Image, OpenOptions};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

const DISK: u64 = 512 << 20;
const QUEUES: usize = 2;
/// The disk is filled in pieces of this length. The kernel keeps as much in one folio where it can, and a short write
/// to a long folio takes ext4 longer than all else: larger pieces make the figures those of the memory that was to be
/// had.
const PIECE: usize = 64 << 10;

#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    write: bool,
    length: u32,
    requests: u32,
    /// Every block once, in an order that is not the disk's; or block after block.
    scattered: bool,
    depth: u64,
    queues: usize,
}

const fn load(name: &'static str, write: bool, depth: u64, queues: usize, requests: u32) -> Load {
    Load {
        name,
        write,
        length: 4096,
        requests,
        scattered: true,
        depth,
        queues,
    }
}

const fn long(name: &'static str, queues: usize) -> Load {
    Load {
        length: 64 << 10,
        ..load(name, false, 16, queues, 5_000)
    }
}

const fn sequential(name: &'static str, write: bool) -> Load {
    Load {
        length: 1 << 20,
        scattered: false,
        ..load(name, write, 8, 1, 256)
    }
}

/// The one driver takes as much of the processors as a server does, so it is long reads that show what a second queue
/// gives.
const LOADS: [Load; 11] = [
    load("read 4k, depth 1", false, 1, 1, 5_000),
    load("read 4k, depth 1, 2 queues", false, 1, 2, 5_000),
    load("read 4k, depth 32", false, 32, 1, 20_000),
    load("read 4k, depth 32, 2 queues", false, 32, 2, 20_000),
    long("read 64k, depth 16", 1),
    long("read 64k, depth 16, 2 queues", 2),
    load("write 4k, depth 1", true, 1, 1, 2_000),
    load("write 4k, depth 32", true, 32, 1, 10_000),
    load("write 4k, depth 32, 2 queues", true, 32, 2, 10_000),
    sequential("read 1M", false),
    sequential("write 1M", true),
];

/// Into an image that has nothing yet.
const NEW_LOADS: [Load; 4] = [
    load("write 4k, depth 1", true, 1, 1, 300),
    load("write 4k, depth 32", true, 32, 1, 1_000),
    load("write 4k, depth 32, 2 queues", true, 32, 2, 1_000),
    sequential("write 1M", true),
];

enum Server {
    Bulkhead(Backend),
    Qemu(Child),
}

impl Server {
    fn bulkhead(image: &Path, format: Format, aio: Option<&str>) -> Self {
        let mut more = vec!["--num-queues", "2"];
        more.extend(aio.iter().flat_map(|aio| ["--aio", aio]));
        Self::Bulkhead(Backend::start(image, format.name(), &more))
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
                "vhost-user-blk,id=e,node-name=disk,writable=on,num-queues=2,addr.type=unix,addr.path={address}"
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

    /// Processor time so far, of all threads there are and were.
    fn time(&self) -> Duration {
        let pid = libc::pid_t::try_from(self.pid()).unwrap();
        let mut clock = 0;
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: both fill what they are given, which is plain data.
        let failed = unsafe {
            libc::clock_getcpuclockid(pid, &raw mut clock) != 0
                || libc::clock_gettime(clock, &raw mut time) != 0
        };
        assert!(!failed, "the clock of process {pid}");
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
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

/// A server with a guest.
struct Machine {
    server: Server,
    guest: Guest,
    /// Requests a second, and microseconds of processor time of each, of every round of every load.
    results: Vec<Vec<(f64, f64)>>,
}

/// Where request `number` of a load goes, in sectors.
fn place(load: Load, number: u64) -> u64 {
    let blocks = DISK / u64::from(load.length);
    let block = if load.scattered {
        number.wrapping_mul(0x9e37_79b1) % blocks
    } else {
        number % blocks
    };
    block * u64::from(load.length) / 512
}

/// Does the load with `depth` requests under way in each queue at any time, from number `first` on.
fn drive(guest: &mut Guest, load: Load, first: u64) -> Duration {
    let kind = if load.write {
        VIRTIO_BLK_T_OUT
    } else {
        VIRTIO_BLK_T_IN
    };
    // A request may take the room of several slots.
    let room = 1 + u64::from(load.length) / (508 << 10);
    let mut idle: Vec<Vec<u64>> = (0..load.queues as u64)
        .map(|queue| {
            (0..load.depth)
                .map(|slot| (queue * load.depth + slot) * room)
                .collect()
        })
        .collect();
    // By queue and head; the driver's own time is time that the server does not get.
    let mut slots = vec![vec![0; usize::from(peer::RING_SIZE)]; load.queues];
    let mut under_way = vec![0; load.queues];
    let (mut posted, mut done) = (0, 0);
    let start = Instant::now();
    while done < load.requests {
        for (queue, idle) in idle.iter_mut().enumerate() {
            let mut kicked = false;
            while posted < load.requests
                && let Some(slot) = idle.pop()
            {
                let what = (kind, place(load, first + u64::from(posted)));
                let head = guest.post_block(queue, slot, what, (load.length, !load.write));
                slots[queue][usize::from(head)] = slot;
                under_way[queue] += 1;
                posted += 1;
                kicked = true;
            }
            if kicked {
                guest.kick(queue);
            }
        }
        for (queue, idle) in idle.iter_mut().enumerate() {
            if under_way[queue] == 0 {
                continue;
            }
            // One has to come; what has come with it is there to be taken.
            let mut next = guest.wait_used(queue, 1).pop();
            while let Some((head, _)) = next {
                let slot = slots[queue][head as usize];
                assert_eq!(guest.status(slot), 0);
                let chain = guest.chain(queue, head as u16);
                guest.reuse(queue, chain);
                idle.push(slot);
                under_way[queue] -= 1;
                done += 1;
                next = guest.next_used(queue);
            }
        }
    }
    start.elapsed()
}

impl Machine {
    fn measure(&mut self, load: Load, number: usize, first: u64) {
        let before = self.server.time();
        let elapsed = drive(&mut self.guest, load, first);
        let used = self.server.time() - before;
        let requests = f64::from(load.requests);
        self.results[number].push((
            requests / elapsed.as_secs_f64(),
            used.as_secs_f64() * 1e6 / requests,
        ));
    }

    /// Medians.
    fn result(&self, load: usize) -> (f64, f64) {
        let median = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let results = &self.results[load];
        (
            median(results.iter().map(|result| result.0).collect()),
            median(results.iter().map(|result| result.1).collect()),
        )
    }
}

fn make(path: &Path, format: Format, full: bool) {
    qcow::create(path, &CreateOptions::new(format, DISK)).unwrap();
    if full {
        let image = Image::open(path, &OpenOptions::new(format).writable(true)).unwrap();
        for at in (0..DISK).step_by(PIECE) {
            image.write_at(at, &vec![at as u8 | 1; PIECE]).unwrap();
        }
        image.close().unwrap();
        // What the kernel would write back meanwhile is none of the servers' work.
        std::fs::File::open(path).unwrap().sync_all().unwrap();
    }
}

/// The servers that there are, each with an image of its own.
fn machines(
    folder: &Path,
    format: Format,
    full: bool,
    loads: usize,
) -> Vec<(&'static str, Machine)> {
    let mut machines = Vec::new();
    for name in ["auto", "io_uring", "threads", "qemu"] {
        let image: PathBuf = folder.join(name);
        make(&image, format, full);
        let socket = folder.join("qsd.sock");
        let server = match name {
            "qemu" => Server::qemu(&image, format, &socket),
            "auto" => Some(Server::bulkhead(&image, format, None)),
            aio => Some(Server::bulkhead(&image, format, Some(aio))),
        };
        let Some(server) = server else {
            eprintln!("skipped: {name} is not installed");
            continue;
        };
        let mut guest = match &server {
            Server::Bulkhead(backend) => Guest::connect_to(&backend.socket, QUEUES),
            Server::Qemu(_) => Guest::connect_to(&socket, QUEUES),
        };
        guest.start();
        let results = vec![Vec::new(); loads];
        machines.push((
            name,
            Machine {
                server,
                guest,
                results,
            },
        ));
    }
    machines
}

struct Wanted {
    json: bool,
    rounds: u64,
    images: Vec<String>,
}

fn wanted() -> Wanted {
    let mut wanted = Wanted {
        json: false,
        rounds: 5,
        images: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => wanted.json = true,
            "--rounds" => wanted.rounds = arguments.next().unwrap().parse().unwrap(),
            // Cargo's own.
            "--bench" => {}
            image => wanted.images.push(image.to_owned()),
        }
    }
    wanted
}

fn main() {
    let wanted = wanted();
    for (name, format, full) in [
        ("raw", Format::Raw, true),
        ("qcow2", Format::Qcow2, true),
        ("new", Format::Qcow2, false),
    ] {
        if !wanted.images.is_empty() && !wanted.images.iter().any(|image| image == name) {
            continue;
        }
        let loads: &[Load] = if full { &LOADS } else { &NEW_LOADS };
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut machines = machines(folder.path(), format, full, loads.len());
        for round in 0..wanted.rounds {
            let mut first = round * 2_000;
            for (number, &load) in loads.iter().enumerate() {
                // Each comes first in its turn: what the one before has left to the kernel is not always the same
                // one's.
                let servers = machines.len();
                for place in 0..servers {
                    let turn = (round as usize + number + place) % servers;
                    machines[turn].1.measure(load, number, first);
                }
                first += u64::from(load.requests);
            }
        }
        tell(name, loads, &machines, wanted.json);
    }
}

fn tell(image: &str, loads: &[Load], machines: &[(&str, Machine)], json: bool) {
    for (number, load) in loads.iter().enumerate() {
        let results = machines
            .iter()
            .map(|(name, machine)| (*name, machine.result(number)));
        if json {
            let fields: String = results
                .map(|(name, (rate, time))| format!(",\"{name}\":[{rate:.0},{time:.2}]"))
                .collect();
            println!("{{\"load\":\"{image}, {}\"{fields}}}", load.name);
        } else {
            let cells: String = results
                .map(|(name, (rate, time))| format!("  {name} {rate:>8.0}/s {time:>7.2} us"))
                .collect();
            println!("{:<36}{cells}", format!("{image}, {}", load.name));
        }
    }
    if !json {
        for (name, machine) in machines {
            println!("{image}, memory of {name}: {} KiB", machine.server.memory());
        }
    }
}
