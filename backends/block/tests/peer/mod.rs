//! A frontend and a driver for tests: the `vhost` crate's frontend on one side, split rings in shared memory on the other.

#![allow(clippy::disallowed_macros, reason = "a test reports to whoever runs it")]
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod killed;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
use tempfile::TempDir;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// Longer than anything here takes, on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const RING_SIZE: u16 = 128;
pub const VERSION_1: u64 = 1 << 32;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
pub const EVENT_IDX: u64 = 1 << 29;
pub const FLUSH: u64 = 1 << 9;

const MEMORY: usize = 96 << 20;
const RINGS: u64 = 0x1_0000;
const SLOTS: u64 = 16 << 20;
/// Room for one request: header, status, and from `DATA` on its data.
const SLOT: u64 = 512 << 10;
const DATA: u64 = 4096;

/// A running `bulkhead-block` and its folder.
pub struct Backend {
    pub child: Child,
    pub socket: PathBuf,
    folder: TempDir,
    strace: bool,
}

/// The program, ready to be given more arguments.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-block"));
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

/// A folder with a raw image of `size` bytes, each sector filled with its own number's low byte.
pub fn raw_image(size: usize) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let content: Vec<u8> = (0..size).map(|at| (at / 512) as u8).collect();
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

impl Backend {
    /// Starts the program on `image` and waits until it says that it is ready.
    pub fn start(image: &Path, format: &str, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("blk.sock");
        let child = spawn(program(), &socket, (image, format, more), folder.path());
        Self {
            child,
            socket,
            folder,
            strace: false,
        }
    }

    /// The same, but the first call of `syscall` in each thread fails with EIO, and does nothing.
    pub fn start_failing(syscall: &str, image: &Path, format: &str, more: &[&str]) -> Self {
        let injected = format!("inject={syscall}:error=EIO:when=1");
        Self::start_traced(&injected, (image, format, more))
    }

    /// The same, with what strace(1) is to do to its system calls. [`child`](Self::child) is strace.
    pub fn start_traced(injected: &str, (image, format, more): (&Path, &str, &[&str])) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("blk.sock");
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-qq", "-o", "/dev/null", "-e", injected])
            .arg(env!("CARGO_BIN_EXE_bulkhead-block"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let child = spawn(strace, &socket, (image, format, more), folder.path());
        Self {
            child,
            socket,
            folder,
            strace: true,
        }
    }

    /// Kills the program as nothing else can, and starts another in its place.
    pub fn kill_and_restart(&mut self, image: &Path, format: &str, more: &[&str]) {
        self.kill();
        let image = (image, format, more);
        self.child = spawn(program(), &self.socket, image, self.folder.path());
    }

    /// Kills the program; strace ends with it.
    pub fn kill(&mut self) {
        if self.strace {
            let id = self.child.id();
            let children = format!("/proc/{id}/task/{id}/children");
            let children = std::fs::read_to_string(children).unwrap();
            for child in children.split_whitespace() {
                let child = rustix::process::Pid::from_raw(child.parse().unwrap()).unwrap();
                rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
            }
        } else {
            self.child.kill().unwrap();
        }
        self.child.wait().unwrap();
        self.strace = false;
    }

    /// Starts the program on `image` again, with another socket.
    pub fn restart_elsewhere(&mut self, image: &Path, format: &str) {
        self.socket = self.folder.path().join("other.sock");
        self.child = spawn(
            program(),
            &self.socket,
            (image, format, &[]),
            self.folder.path(),
        );
    }

    /// Waits for the end, and gives the status and what was said on standard error.
    pub fn end(mut self) -> (ExitStatus, String) {
        let status = wait(&mut self.child);
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        assert!(!self.socket.exists(), "the socket is still there");
        (status, said)
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(
    mut program: Command,
    socket: &Path,
    (image, format, more): (&Path, &str, &[&str]),
    folder: &Path,
) -> Child {
    let notify = folder.join("notify");
    let _ = std::fs::remove_file(&notify);
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut child = program
        .arg("--socket-path")
        .arg(socket)
        .arg("--blk-file")
        .arg(image)
        .args(["--format", format])
        .args(more)
        .env("NOTIFY_SOCKET", &notify)
        .spawn()
        .unwrap();
    bound(&child);
    let mut message = [0; 16];
    match manager.recv(&mut message) {
        Ok(length) => assert_eq!(&message[..length], b"READY=1\n"),
        Err(error) => {
            let _ = child.kill();
            let output = child.wait_with_output().unwrap();
            panic!(
                "not ready: {error}; {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    child
}

/// Kills `child` if it lives longer than any test takes: whoever waits for its answer, without a bound as the `vhost` crate does, finds
/// the connection closed, and fails.
fn bound(child: &Child) {
    /// Longer than any test takes.
    const LIFE: Timespec = Timespec {
        tv_sec: 300,
        tv_nsec: 0,
    };
    let id = rustix::process::Pid::from_child(child);
    let process = pidfd_open(id, PidfdFlags::empty()).unwrap();
    std::thread::spawn(move || {
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        if let Ok(0) = poll(&mut fds, Some(&LIFE)) {
            eprintln!("bulkhead-block has run for too long, and is killed");
            let _ = pidfd_send_signal(&process, rustix::process::Signal::KILL);
        }
    });
}

/// Waits for `child`, but not for ever.
pub fn wait(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(start.elapsed() < PATIENCE, "the program does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `fd` can be read.
pub fn readable(fd: &impl AsRawFd, patience: Duration) -> bool {
    // SAFETY: the descriptor is open: its owner is borrowed.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    let timeout = Timespec::try_from(patience).unwrap();
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).unwrap() > 0
}

/// What a driver keeps of a ring.
pub struct Ring {
    pub index: usize,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
    free: Vec<u16>,
    available: u16,
    seen: u16,
}

impl Ring {
    fn new(index: usize) -> Self {
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        Self {
            index,
            kick: event(),
            call: event(),
            err: event(),
            free: (0..RING_SIZE).rev().collect(),
            available: 0,
            seen: 0,
        }
    }

    pub fn descriptors(&self) -> u64 {
        RINGS * (self.index as u64 + 1)
    }

    pub fn available_ring(&self) -> u64 {
        self.descriptors() + 0x2000
    }

    pub fn used_ring(&self) -> u64 {
        self.descriptors() + 0x4000
    }
}

/// One buffer of a request.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub address: u64,
    pub length: u32,
    pub writable: bool,
}

/// A guest: memory, rings, and the connection that shares them.
pub struct Guest {
    pub memory: GuestMemoryMmap,
    pub frontend: Frontend,
    pub rings: Vec<Ring>,
    pub inflight: Option<(VhostUserInflight, File)>,
    pub features: u64,
    pub protocol: VhostUserProtocolFeatures,
}

pub fn guest_memory() -> GuestMemoryMmap {
    let fd: OwnedFd = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, MEMORY as u64).unwrap();
    let file = FileOffset::new(File::from(fd), 0);
    GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY, Some(file))]).unwrap()
}

impl Guest {
    /// Connects, negotiates everything the tests use, and starts `rings` rings.
    pub fn connect(backend: &Backend, rings: usize) -> Self {
        let mut guest = Self::connect_only(backend, rings);
        guest.start();
        guest
    }

    /// Connects and sets nothing up.
    pub fn connect_only(backend: &Backend, rings: usize) -> Self {
        Self::connect_to(&backend.socket, rings)
    }

    /// Connects to whatever serves `socket` and sets nothing up.
    pub fn connect_to(socket: &Path, rings: usize) -> Self {
        let frontend = Frontend::connect(socket, rings as u64).unwrap();
        Self {
            memory: guest_memory(),
            frontend,
            rings: (0..rings).map(Ring::new).collect(),
            inflight: None,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
        }
    }

    /// Connects to another back-end with everything the guest had before.
    pub fn reconnect(&mut self, backend: &Backend) {
        self.frontend = Frontend::connect(&backend.socket, self.rings.len() as u64).unwrap();
        self.start();
    }

    pub fn negotiate(&mut self) {
        let frontend = &mut self.frontend;
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let known = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE;
        let protocol = frontend.get_protocol_features().unwrap() & known;
        frontend.set_protocol_features(protocol).unwrap();
        self.protocol = protocol;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        self.features = offered;
        frontend.set_features(offered).unwrap();
    }

    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.memory
            .iter()
            .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
            .collect()
    }

    pub fn start(&mut self) {
        self.negotiate();
        if self
            .protocol
            .contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
        {
            self.share_inflight_area();
        }
        self.frontend.set_mem_table(&self.regions()).unwrap();
        for index in 0..self.rings.len() {
            self.start_ring(index).unwrap();
        }
    }

    fn share_inflight_area(&mut self) {
        let wanted = VhostUserInflight::new(0, 0, self.rings.len() as u16, RING_SIZE);
        let kept = self.inflight.take();
        let kept = kept.unwrap_or_else(|| self.frontend.get_inflight_fd(&wanted).unwrap());
        self.frontend
            .set_inflight_fd(&kept.0, kept.1.as_raw_fd())
            .unwrap();
        self.inflight = Some(kept);
    }

    pub fn ring_config(&self, index: usize) -> VringConfigData {
        let ring = &self.rings[index];
        let user = |address| self.memory.get_host_address(GuestAddress(address)).unwrap() as u64;
        VringConfigData {
            queue_max_size: RING_SIZE,
            queue_size: RING_SIZE,
            flags: 0,
            desc_table_addr: user(ring.descriptors()),
            used_ring_addr: user(ring.used_ring()),
            avail_ring_addr: user(ring.available_ring()),
            log_addr: None,
        }
    }

    pub fn start_ring(&mut self, index: usize) -> Result<(), vhost::Error> {
        let config = self.ring_config(index);
        let ring = &self.rings[index];
        let frontend = &mut self.frontend;
        frontend.set_vring_num(index, RING_SIZE)?;
        frontend.set_vring_base(index, 0)?;
        frontend.set_vring_addr(index, &config)?;
        frontend.set_vring_err(index, &ring.err)?;
        frontend.set_vring_kick(index, &ring.kick)?;
        frontend.set_vring_call(index, &ring.call)?;
        frontend.set_vring_enable(index, true)
    }

    pub fn put_descriptor(&self, ring: usize, index: u16, words: (u64, u32, u16, u16)) {
        let at = self.rings[ring].descriptors() + 16 * u64::from(index);
        self.put(at, &words.0.to_le_bytes());
        self.put(at + 8, &words.1.to_le_bytes());
        self.put(at + 12, &words.2.to_le_bytes());
        self.put(at + 14, &words.3.to_le_bytes());
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn get(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, ring: usize, head: u16) {
        let state = &mut self.rings[ring];
        let slot = u64::from(state.available % RING_SIZE);
        let at = state.available_ring();
        state.available = state.available.wrapping_add(1);
        let index = state.available;
        self.put(at + 4 + 2 * slot, &head.to_le_bytes());
        self.memory
            .store(index.to_le(), GuestAddress(at + 2), Ordering::Release)
            .unwrap();
    }

    /// Makes a chain of `buffers` and offers it.
    pub fn post(&mut self, ring: usize, buffers: &[Buffer]) -> u16 {
        let indexes: Vec<u16> = buffers
            .iter()
            .map(|_| self.rings[ring].free.pop().expect("no descriptor is free"))
            .collect();
        for (at, buffer) in buffers.iter().enumerate() {
            let next = indexes.get(at + 1);
            let flags = u16::from(next.is_some()) | (u16::from(buffer.writable) << 1);
            let words = (
                buffer.address,
                buffer.length,
                flags,
                next.copied().unwrap_or(0),
            );
            self.put_descriptor(ring, indexes[at], words);
        }
        self.offer(ring, indexes[0]);
        indexes[0]
    }

    pub fn kick(&self, ring: usize) {
        self.rings[ring].kick.write(1).unwrap();
    }

    pub fn used_index(&self, ring: usize) -> u16 {
        let at = GuestAddress(self.rings[ring].used_ring() + 2);
        u16::from_le(self.memory.load(at, Ordering::Acquire).unwrap())
    }

    /// The head and length of the `number`th completion.
    pub fn used(&self, ring: usize, number: u16) -> (u32, u32) {
        let slot = u64::from(number % RING_SIZE);
        let at = self.rings[ring].used_ring() + 4 + 8 * slot;
        let word = |at| u32::from_le_bytes(self.get(at, 4).try_into().unwrap());
        (word(at), word(at + 4))
    }

    /// The descriptors of the chain at `head`.
    pub fn chain(&self, ring: usize, head: u16) -> Vec<u16> {
        let word = |index: u16, offset| {
            let at = self.rings[ring].descriptors() + 16 * u64::from(index) + offset;
            u16::from_le_bytes(self.get(at, 2).try_into().unwrap())
        };
        let mut indexes = vec![head];
        let mut last = head;
        while word(last, 12) & 1 != 0 {
            last = word(last, 14);
            indexes.push(last);
        }
        indexes
    }

    /// Gives the descriptors of a finished request back to the ring.
    pub fn reuse(&mut self, ring: usize, indexes: impl IntoIterator<Item = u16>) {
        self.rings[ring].free.extend(indexes);
    }

    /// Waits until `count` completions more than those seen are there, woken by the call descriptor alone.
    pub fn wait_used(&mut self, ring: usize, count: u16) -> Vec<(u32, u32)> {
        let from = self.rings[ring].seen;
        let start = Instant::now();
        // With EVENT_IDX: tell me of the last one.
        let event = self.rings[ring].available_ring() + 4 + 2 * u64::from(RING_SIZE);
        let last = from.wrapping_add(count - 1).to_le();
        let order = Ordering::SeqCst;
        self.memory.store(last, GuestAddress(event), order).unwrap();
        std::sync::atomic::fence(order);
        while self.used_index(ring).wrapping_sub(from) < count {
            let left = PATIENCE.saturating_sub(start.elapsed());
            assert!(
                readable(&self.rings[ring].call, left),
                "no notification; {} of {count} are done",
                self.used_index(ring).wrapping_sub(from)
            );
            let _ = self.rings[ring].call.read();
        }
        self.rings[ring].seen = from.wrapping_add(count);
        (0..count)
            .map(|at| self.used(ring, from.wrapping_add(at)))
            .collect()
    }

    /// The next completion, if it is there already.
    pub fn next_used(&mut self, ring: usize) -> Option<(u32, u32)> {
        let seen = self.rings[ring].seen;
        if self.used_index(ring) == seen {
            return None;
        }
        self.rings[ring].seen = seen.wrapping_add(1);
        Some(self.used(ring, seen))
    }

    /// Where the data of request slot `slot` is.
    pub fn data(slot: u64) -> u64 {
        SLOTS + SLOT * slot + DATA
    }

    fn status_at(slot: u64) -> u64 {
        SLOTS + SLOT * slot + 16
    }

    pub fn status(&self, slot: u64) -> u8 {
        self.get(Self::status_at(slot), 1)[0]
    }

    /// Posts a block request that uses request slot `slot`; `length` bytes of data follow the header or precede the status.
    pub fn post_block(
        &mut self,
        ring: usize,
        slot: u64,
        (kind, sector): (u32, u64),
        (length, is_in): (u32, bool),
    ) -> u16 {
        let header = SLOTS + SLOT * slot;
        self.put(header, &kind.to_le_bytes());
        self.put(header + 4, &[0; 4]);
        self.put(header + 8, &sector.to_le_bytes());
        self.put(Self::status_at(slot), &[0xff]);
        let buffer = |address, length, writable| Buffer {
            address,
            length,
            writable,
        };
        let mut buffers = vec![buffer(header, 16, false)];
        if length != 0 {
            buffers.push(buffer(Self::data(slot), length, is_in));
        }
        buffers.push(buffer(Self::status_at(slot), 1, true));
        self.post(ring, &buffers)
    }

    /// Does one block request and gives its status. Descriptors are taken back.
    pub fn request(&mut self, kind: u32, sector: u64, length: u32, is_in: bool) -> u8 {
        self.request_on(0, kind, sector, (length, is_in))
    }

    pub fn request_on(&mut self, ring: usize, kind: u32, sector: u64, data: (u32, bool)) -> u8 {
        let before = self.rings[ring].free.clone();
        let head = self.post_block(ring, 0, (kind, sector), data);
        self.kick(ring);
        let done = self.wait_used(ring, 1);
        assert_eq!(done[0].0, u32::from(head));
        self.rings[ring].free = before;
        self.status(0)
    }

    pub fn read(&mut self, sector: u64, length: u32) -> Vec<u8> {
        self.put(Self::data(0), &vec![0xee; length as usize]);
        assert_eq!(self.request(VIRTIO_BLK_T_IN, sector, length, true), 0);
        self.get(Self::data(0), length as usize)
    }

    pub fn write(&mut self, sector: u64, bytes: &[u8]) {
        self.put(Self::data(0), bytes);
        let length = bytes.len() as u32;
        assert_eq!(self.request(VIRTIO_BLK_T_OUT, sector, length, false), 0);
    }

    pub fn flush(&mut self) {
        assert_eq!(self.request(VIRTIO_BLK_T_FLUSH, 0, 0, false), 0);
    }
}
