//! Several queues of one image, served by as many threads: at once, over the same clusters, stopped and killed in the
//! midst of it.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]
// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use peer::{Backend, Guest, raw_image};
use vhost::VhostBackend;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

const SECTOR: u64 = 512;

/// A generator of the same "random" numbers every time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What a sector may hold: the number of the last write to it; 0 for zeroes.
type Value = u64;

/// After a discard the content is undefined.
const ANYTHING: Value = u64::MAX;

/// A change of a sector. Times are counted in requests posted and completed.
struct Change {
    value: Value,
    posted: u64,
    /// When a later change was completed that was posted after this one's completion. From then on no read may return
    /// this one.
    gone: u64,
    completed: u64,
}

/// What each sector may hold when requests of several queues overlap: any of those that no later one has replaced.
struct Model {
    clock: u64,
    sectors: Vec<Vec<Change>>,
}

impl Model {
    fn new(sectors: u64, value: Value) -> Self {
        let first = || Change {
            value,
            posted: 0,
            gone: u64::MAX,
            completed: 0,
        };
        Self {
            clock: 1,
            sectors: (0..sectors).map(|_| vec![first()]).collect(),
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A change of `count` sectors was posted at `now`.
    fn posted(&mut self, (sector, count): (u64, u64), value: Value, now: u64) {
        for sector in &mut self.sectors[sector as usize..][..count as usize] {
            sector.push(Change {
                value,
                posted: now,
                gone: u64::MAX,
                completed: u64::MAX,
            });
        }
    }

    /// The change that was posted at `posted` is done.
    fn completed(&mut self, (sector, count): (u64, u64), posted: u64, now: u64) {
        for changes in &mut self.sectors[sector as usize..][..count as usize] {
            for change in changes {
                if change.posted == posted {
                    change.completed = now;
                } else if change.completed < posted {
                    change.gone = change.gone.min(now);
                }
            }
        }
    }

    /// Whether who read `sector` from `posted` to `now` may have seen `value`.
    fn allows(&self, sector: u64, value: Value, (posted, now): (u64, u64)) -> bool {
        self.sectors[sector as usize].iter().any(|change| {
            (change.value == value || change.value == ANYTHING)
                && change.posted < now
                && change.gone > posted
        })
    }

    fn check(&self, first: u64, content: &[u8], span: (u64, u64)) {
        for (sector, bytes) in (first..).zip(content.chunks(SECTOR as usize)) {
            let words: Vec<u64> = bytes
                .chunks(8)
                .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
                .collect();
            // Nothing makes a read wait for a write that is under way beside it: the kernel copies to and from a page
            // as it comes.
            let at_rest = span.1 == u64::MAX;
            assert!(
                !at_rest || words.iter().all(|&word| word == words[0]),
                "sector {sector} is a mixture"
            );
            for value in words {
                assert!(
                    self.allows(sector, value, span),
                    "sector {sector} holds write {value}"
                );
            }
        }
    }
}

/// A request that is under way.
struct Request {
    kind: u32,
    slot: u64,
    place: (u64, u64),
    posted: u64,
}

/// A guest that uses its queues at the same time.
struct Driver {
    guest: Guest,
    model: Model,
    numbers: Numbers,
    requests: HashMap<(usize, u16), Request>,
    slots: Vec<u64>,
    next_value: Value,
    done: u64,
}

/// Requests of one queue at a time.
const DEPTH: usize = 16;
const LONGEST: u64 = 120;
/// Sectors of the part of the disk where most requests are at a time.
const PART: u64 = 512;

impl Driver {
    fn new(backend: &Backend, queues: usize, sectors: u64, seed: u64) -> Self {
        Self {
            guest: Guest::connect(backend, queues),
            model: Model::new(sectors, BASE),
            numbers: Numbers(seed),
            requests: HashMap::new(),
            slots: (0..(queues * DEPTH) as u64).collect(),
            next_value: 1,
            done: 0,
        }
    }

    fn under_way(&self, queue: usize) -> usize {
        self.requests.keys().filter(|key| key.0 == queue).count()
    }

    /// Posts requests until every queue is full.
    fn fill(&mut self) {
        for queue in 0..self.guest.rings.len() {
            let before = self.under_way(queue);
            for _ in before..DEPTH {
                self.post(queue);
            }
            if before < DEPTH {
                self.guest.kick(queue);
            }
        }
    }

    /// Mostly where the other requests are that are under way, which is another part of the disk all the time: where no
    /// cluster is yet.
    fn place(&mut self, count: u64) -> u64 {
        let all = self.model.sectors.len() as u64;
        match self.numbers.below(8) {
            0 => self.numbers.below(all + 1 - count),
            _ => {
                let part = self.done / 32 * 7 % (all / PART);
                part * PART + self.numbers.below(PART + 1 - count)
            }
        }
    }

    fn post(&mut self, queue: usize) {
        let slot = self.slots.pop().unwrap();
        let count = 1 + self.numbers.below(LONGEST);
        let sector = self.place(count);
        let kind = match self.numbers.below(16) {
            0..8 => VIRTIO_BLK_T_OUT,
            8..13 => VIRTIO_BLK_T_IN,
            13 => VIRTIO_BLK_T_WRITE_ZEROES,
            14 => VIRTIO_BLK_T_DISCARD,
            _ => VIRTIO_BLK_T_FLUSH,
        };
        let place = match kind {
            VIRTIO_BLK_T_FLUSH => (0, 0),
            _ => (sector, count),
        };
        let posted = self.model.tick();
        let data = (count * SECTOR) as u32;
        let (length, is_in) = match kind {
            VIRTIO_BLK_T_OUT => {
                let value = self.next_value;
                self.next_value += 1;
                let bytes = value.to_le_bytes().repeat(data as usize / 8);
                self.guest.put(Guest::data(slot), &bytes);
                self.model.posted(place, value, posted);
                (data, false)
            }
            VIRTIO_BLK_T_IN => (data, true),
            VIRTIO_BLK_T_FLUSH => (0, false),
            kind => {
                let zeroes = kind == VIRTIO_BLK_T_WRITE_ZEROES;
                let flags = if zeroes { self.numbers.below(2) } else { 0 };
                let words = (sector, count | flags << 32);
                let segment = [words.0.to_le_bytes(), words.1.to_le_bytes()].concat();
                self.guest.put(Guest::data(slot), &segment);
                let value = if zeroes { 0 } else { ANYTHING };
                self.model.posted(place, value, posted);
                (16, false)
            }
        };
        let at = if length == 16 { 0 } else { place.0 };
        let head = self
            .guest
            .post_block(queue, slot, (kind, at), (length, is_in));
        let request = Request {
            kind,
            slot,
            place,
            posted,
        };
        assert!(self.requests.insert((queue, head), request).is_none());
    }

    /// Takes what is done; `false` if nothing was.
    fn take(&mut self) -> bool {
        let before = self.done;
        for queue in 0..self.guest.rings.len() {
            while let Some((head, _)) = self.guest.next_used(queue) {
                self.complete(queue, head as u16);
            }
        }
        self.done > before
    }

    fn complete(&mut self, queue: usize, head: u16) {
        let request = self.requests.remove(&(queue, head));
        let request = request.expect("a request is done twice");
        assert_eq!(self.guest.status(request.slot), 0);
        let now = self.model.tick();
        match request.kind {
            VIRTIO_BLK_T_IN => {
                let length = (request.place.1 * SECTOR) as usize;
                let seen = self.guest.get(Guest::data(request.slot), length);
                self.model
                    .check(request.place.0, &seen, (request.posted, now));
            }
            _ => self.model.completed(request.place, request.posted, now),
        }
        let chain = self.guest.chain(queue, head);
        self.guest.reuse(queue, chain);
        self.slots.push(request.slot);
        self.done += 1;
    }

    /// Waits until something is done.
    fn wait(&mut self) {
        let start = Instant::now();
        while !self.take() {
            assert!(start.elapsed() < peer::PATIENCE, "nothing is done");
            std::thread::yield_now();
        }
    }

    fn finish(&mut self) {
        while !self.requests.is_empty() {
            self.wait();
        }
    }

    /// Stops a queue in the midst of everything, and has it go on.
    fn restart_queue(&mut self, queue: usize) {
        self.guest.frontend.get_vring_base(queue).unwrap();
        // Nothing is under way any more, and no one may write to its requests.
        self.guest.start_ring(queue).unwrap();
    }
}

/// What the base image has everywhere.
const BASE: Value = 0x0101_0101_0101_0101;
const SECTORS: u64 = (16 << 20) / SECTOR;

fn overlay(folder: &Path, cluster_size: u64, extended_l2: bool) -> PathBuf {
    let base = folder.join("base.raw");
    std::fs::write(&base, vec![1; (SECTORS * SECTOR) as usize]).unwrap();
    let image = folder.join("overlay.qcow2");
    let mut options = qcow::CreateOptions::new(qcow::Format::Qcow2, SECTORS * SECTOR);
    options.backing_file = Some("base.raw".to_owned());
    options.backing_format = Some(qcow::Format::Raw);
    options.cluster_size = cluster_size;
    options.extended_l2 = extended_l2;
    qcow::create(&image, &options).unwrap();
    image
}

/// Both this library and QEMU's must find nothing wrong; after a kill there may be clusters that nothing uses.
fn check(image: &Path, leaks: bool) {
    let options = qcow::OpenOptions::new(qcow::Format::Qcow2).locking(qcow::Locking::Shared);
    let opened = qcow::Image::open(image, &options).unwrap();
    let found = opened.check(qcow::Repair::None).unwrap();
    assert_eq!((found.corruptions, found.check_errors), (0, 0));
    assert!(leaks || found.leaks == 0, "{} leaks", found.leaks);
    let qemu = Command::new("qemu-img")
        .args(["check", "-U", "-q", "-f", "qcow2"])
        .arg(image)
        .output();
    match qemu {
        Ok(output) => {
            let code = output.status.code();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(code == Some(0) || leaks && code == Some(3), "{said}");
        }
        Err(error) => eprintln!("skipped: qemu-img check: {error}"),
    }
}

/// Has `queues` queues change the same clusters of one image, with kills and stops in between, and looks what became of
/// it.
fn stress(image: &Path, queues: usize, aio: &str, seed: u64) {
    let number = queues.to_string();
    let more = ["--num-queues", number.as_str(), "--aio", aio];
    let mut backend = Backend::start(image, "qcow2", &more);
    let mut driver = Driver::new(&backend, queues, SECTORS, seed);
    const LIVES: u32 = 12;
    for life in 0..LIVES {
        // Many backends are killed just after they have taken over.
        let requests = match life % 3 {
            0 => 200 + driver.numbers.below(200),
            _ => driver.numbers.below(12),
        };
        let end = driver.done + requests;
        while driver.done < end {
            driver.fill();
            if driver.numbers.below(50) == 0 {
                let queue = driver.numbers.below(queues as u64) as usize;
                driver.restart_queue(queue);
            }
            if driver.numbers.below(100) == 0 {
                let regions = driver.guest.regions();
                driver.guest.frontend.set_mem_table(&regions).unwrap();
            }
            driver.wait();
        }
        if life + 1 < LIVES {
            driver.fill();
            backend.child.kill().unwrap();
            backend.child.wait().unwrap();
            check(image, true);
            backend.kill_and_restart(image, "qcow2", &more);
            driver.guest.reconnect(&backend);
        }
    }
    driver.finish();
    let Driver { guest, model, .. } = driver;
    drop(guest);
    let (status, said) = backend.end();
    assert!(status.success() && said.is_empty(), "{status}: {said}");

    check(image, true);
    let options = qcow::OpenOptions::new(qcow::Format::Qcow2).follow_references();
    let disk = qcow::Image::open(image, &options).unwrap();
    let mut content = vec![0; (SECTORS * SECTOR) as usize];
    disk.read_at(0, &mut content).unwrap();
    model.check(0, &content, (model.clock, u64::MAX));
}

#[test]
fn queues_that_change_the_same_clusters_agree_whenever_they_are_stopped_or_killed() {
    let seed = std::process::id().into();
    println!("seed {seed}");
    for (cluster_size, extended_l2, queues, aio) in [
        (65536, false, 2, "io_uring"),
        (4096, false, 4, "io_uring"),
        (65536, true, 3, "io_uring"),
        (512, false, 2, "threads"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let image = overlay(folder.path(), cluster_size, extended_l2);
        stress(&image, queues, aio, seed);
    }
}

#[test]
fn a_queue_is_stopped_that_waits_for_what_another_reads() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.qcow2");
    let options = qcow::CreateOptions::new(qcow::Format::Qcow2, 8 << 20);
    qcow::create(&image, &options).unwrap();
    let backend = Backend::start(&image, "qcow2", &["--num-queues", "2"]);
    let mut guest = Guest::connect(&backend, 2);
    let file = File::open(&image).unwrap();
    for round in 0..64 {
        guest.write(0, &[7; 64 << 10]);
        guest.flush();
        // So that the read takes a while.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let read = guest.post_block(0, 1, (VIRTIO_BLK_T_IN, 0), (32 << 10, true));
        let zeroes = [64u64.to_le_bytes(), 8u64.to_le_bytes()].concat();
        guest.put(Guest::data(2), &zeroes);
        let zero = guest.post_block(1, 2, (VIRTIO_BLK_T_WRITE_ZEROES, 0), (16, false));
        guest.kick(0);
        guest.kick(1);

        let base = guest.frontend.get_vring_base(1).unwrap();

        let used = u32::from(guest.used_index(1));
        assert_eq!(used, base, "round {round}: what was taken is not done");
        guest.start_ring(1).unwrap();
        for (queue, slot, head) in [(0, 1, read), (1, 2, zero)] {
            guest.wait_used(queue, 1);
            assert_eq!(guest.status(slot), 0);
            let chain = guest.chain(queue, head);
            guest.reuse(queue, chain);
        }
    }
}

/// The threads of `pid` with the name `name`.
fn threads(pid: u32, name: &str) -> Vec<PathBuf> {
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|task| task.unwrap().path())
        .filter(|task| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name)
        })
        .collect()
}

/// How often the threads of `pid` have been given the processor. Those that the kernel has in a process for io_uring
/// do not count.
fn wakeups(pid: u32) -> u64 {
    let mut sum = 0;
    for name in ["rings", "storage", "bulkhead-block"] {
        for task in threads(pid, name) {
            let status = std::fs::read_to_string(task.join("status")).unwrap();
            let switches = status
                .lines()
                .filter(|line| line.contains("ctxt_switches:"));
            sum += switches
                .map(|line| line.split_whitespace().last().unwrap())
                .map(|count| count.parse::<u64>().unwrap())
                .sum::<u64>();
        }
    }
    sum
}

#[test]
fn each_of_several_queues_has_a_confined_thread_for_as_long_as_there_is_a_frontend() {
    let (_folder, image) = raw_image(1 << 20);
    for (queues, expected) in [(1, 0), (2, 2), (5, 5)] {
        let more = ["--persist", "--num-queues", &queues.to_string()];
        let backend = Backend::start(&image, "raw", &more);
        for _ in 0..2 {
            let pid = backend.child.id();
            let mut guest = Guest::connect(&backend, queues);
            for queue in 0..queues {
                assert_eq!(
                    guest.request_on(queue, VIRTIO_BLK_T_IN, 3, (512, true)),
                    0,
                    "{queue}"
                );
            }
            let found = threads(pid, "rings");
            assert_eq!(found.len(), expected);
            for thread in found {
                let status = std::fs::read_to_string(thread.join("status")).unwrap();
                for confined in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
                    assert!(status.contains(confined), "{status}");
                }
            }
            drop(guest);
            let start = Instant::now();
            while !threads(pid, "rings").is_empty() {
                assert!(start.elapsed() < peer::PATIENCE);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

#[test]
fn a_guest_that_asks_for_nothing_wakes_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let image = overlay(folder.path(), 65536, false);
    for queues in [1, 2] {
        let more = ["--num-queues", &queues.to_string()];
        let backend = Backend::start(&image, "qcow2", &more);
        let mut guest = Guest::connect(&backend, queues);
        for (kind, length) in [
            (VIRTIO_BLK_T_OUT, 512),
            (VIRTIO_BLK_T_IN, 512),
            (VIRTIO_BLK_T_FLUSH, 0),
        ] {
            for queue in 0..queues {
                let is_in = kind == VIRTIO_BLK_T_IN;
                assert_eq!(guest.request_on(queue, kind, 0, (length, is_in)), 0);
            }
        }
        // What follows the last answer takes a moment.
        std::thread::sleep(Duration::from_millis(200));

        let before = wakeups(backend.child.id());
        std::thread::sleep(Duration::from_millis(500));

        assert_eq!(wakeups(backend.child.id()), before, "{queues} queues");
    }
}
