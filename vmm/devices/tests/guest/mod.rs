//! The guest's side of a block device: a minimal driver, and eventfds in place of KVM's.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bulkhead_devices::MsiVector;
use bulkhead_devices::vhost_user::{
    BackendEvent, DeviceOptions, Frontend, FrontendConfig, FrontendError, Host,
};
use bulkhead_devices::virtio::{ActiveQueue, DeviceEvents, VirtioDevice};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RAM: usize = 0x20_0000;
/// The rings are in a second region, as on a machine with a hole below 4 GiB.
const HIGH: u64 = 1 << 32;
const DESCRIPTORS: u64 = HIGH;
pub(crate) const AVAILABLE: u64 = HIGH + 0x1000;
pub(crate) const USED: u64 = HIGH + 0x2000;
const HEADER: u64 = 0x1000;
const DATA: u64 = 0x2000;
const STATUS: u64 = 0x3000;
pub(crate) const SIZE: u16 = 64;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;

const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;

/// RAM in so many regions more than the two that are used.
pub(crate) fn guest_memory(more: u64) -> GuestMemoryMmap {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&file, (2 + more) * RAM as u64).unwrap();
    let region = |number: u64| {
        let part = FileOffset::new(file.try_clone().unwrap(), number * RAM as u64);
        (GuestAddress(number * HIGH), RAM, Some(part))
    };
    GuestMemoryMmap::from_ranges_with_files((0..2 + more).map(region)).unwrap()
}

struct Vector(EventFd);

impl MsiVector for Vector {
    fn eventfd(&self) -> &EventFd {
        &self.0
    }

    fn signal(&self) {
        self.0.write(1).unwrap();
    }

    fn is_pending(&self) -> bool {
        false
    }

    fn route(&self, _address: u64, _data: u32) -> io::Result<()> {
        Ok(())
    }

    fn unroute(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What the frontend has reported.
#[derive(Default)]
pub(crate) struct Events(Mutex<(u64, u64, Vec<String>)>, AtomicU64, AtomicU64);

impl Events {
    pub(crate) fn note(&self, event: &BackendEvent<'_>) {
        let mut events = self.0.lock().unwrap();
        match event {
            BackendEvent::Lost => events.0 += 1,
            BackendEvent::Back => events.1 += 1,
            BackendEvent::Unusable(error) => events.2.push(error.fault.to_string()),
        }
    }

    pub(crate) fn lost(&self) -> u64 {
        self.0.lock().unwrap().0
    }

    pub(crate) fn back(&self) -> u64 {
        self.0.lock().unwrap().1
    }

    pub(crate) fn config_changes(&self) -> u64 {
        self.1.load(Ordering::Acquire)
    }

    #[allow(dead_code)] // not all tests that have this module use it
    pub(crate) fn resets_needed(&self) -> u64 {
        self.2.load(Ordering::Acquire)
    }

    pub(crate) fn unusable(&self) -> Vec<String> {
        self.0.lock().unwrap().2.clone()
    }
}

impl DeviceEvents for Events {
    fn config_changed(&self) {
        self.1.fetch_add(1, Ordering::AcqRel);
    }

    fn needs_reset(&self) {
        self.2.fetch_add(1, Ordering::AcqRel);
    }
}

/// An activated frontend of the backend at `socket`, whose reports go to `events`.
pub(crate) fn connect(
    socket: &Path,
    device_type: u16,
    queue_size: u16,
    events: &Arc<Events>,
    memory: GuestMemoryMmap,
) -> Result<Arc<Frontend>, FrontendError> {
    let config = FrontendConfig {
        socket: socket.to_path_buf(),
        device_type,
        num_queues: None,
        queue_sizes: vec![queue_size],
        options: DeviceOptions::default(),
    };
    let path = config.socket.clone();
    let connector = Box::new(move || bulkhead_devices::vhost_user::connect(&path));
    let seen = events.clone();
    let observer = move |_: &Path, event: BackendEvent<'_>| seen.note(&event);
    let host = Host {
        connector,
        observer: Box::new(observer),
        enter_thread: Box::new(|| ()),
    };
    let frontend = Frontend::connect(config, memory, host)?;
    frontend.attach(events.clone());
    bulkhead_devices::Lifecycle::activate(&*frontend).unwrap();
    Ok(frontend)
}

/// A block driver that has one request at a time.
pub(crate) struct BlockGuest {
    pub(crate) frontend: Arc<Frontend>,
    memory: GuestMemoryMmap,
    kick: Arc<EventFd>,
    call: Arc<Vector>,
    submitted: u16,
    seen: u16,
}

impl BlockGuest {
    pub(crate) fn new(frontend: Arc<Frontend>, memory: GuestMemoryMmap) -> Self {
        Self {
            frontend,
            memory,
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            call: Arc::new(Vector(EventFd::new(EFD_NONBLOCK).unwrap())),
            submitted: 0,
            seen: 0,
        }
    }

    /// Empty rings, and a device that works on them.
    pub(crate) fn activate(&mut self) {
        for page in [DESCRIPTORS, AVAILABLE, USED] {
            let empty = [0; 0x1000];
            self.memory.write_slice(&empty, GuestAddress(page)).unwrap();
        }
        (self.submitted, self.seen) = (0, 0);
        let queue = ActiveQueue {
            index: 0,
            size: SIZE,
            descriptors: DESCRIPTORS,
            available: AVAILABLE,
            used: USED,
            kick: self.kick.clone(),
            call: self.call.clone(),
        };
        // Everything but EVENT_IDX, so that every answer is interrupted for.
        let features = self.frontend.features() & !(1 << 29);
        self.frontend.activate(features, vec![queue]);
    }

    /// Takes the queues back.
    pub(crate) fn reset(&self) {
        self.frontend.reset();
        let start = Instant::now();
        while !self.frontend.is_stopped() {
            assert!(start.elapsed() < Duration::from_secs(20), "no reset");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    pub(crate) fn read(&mut self, sector: u64) -> Vec<u8> {
        self.submit_read(sector);
        self.finish_read()
    }

    pub(crate) fn submit_read(&mut self, sector: u64) {
        self.memory
            .write_slice(&[0xee; 512], GuestAddress(DATA))
            .unwrap();
        self.submit(READ, sector, DEVICE_WRITES);
    }

    pub(crate) fn finish_read(&mut self) -> Vec<u8> {
        self.finish();
        let mut data = vec![0; 512];
        self.memory
            .read_slice(&mut data, GuestAddress(DATA))
            .unwrap();
        data
    }

    pub(crate) fn write(&mut self, sector: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(DATA)).unwrap();
        self.submit(WRITE, sector, 0);
        self.finish();
    }

    pub(crate) fn flush(&mut self) {
        self.submit(FLUSH, 0, 0);
        self.finish();
    }

    /// Whether there was an interrupt since the last time.
    #[allow(dead_code)] // not all tests that have this module use it
    pub(crate) fn interrupted(&self) -> bool {
        self.call.0.read().is_ok()
    }

    /// How many requests were answered that were not waited for.
    pub(crate) fn answered(&self) -> u16 {
        self.used_index().wrapping_sub(self.seen)
    }

    fn used_index(&self) -> u16 {
        self.memory
            .load(GuestAddress(USED + 2), Ordering::Acquire)
            .unwrap()
    }

    fn submit(&mut self, kind: u32, sector: u64, data_flags: u16) {
        let memory = &self.memory;
        memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        memory.write_obj(0_u32, GuestAddress(HEADER + 4)).unwrap();
        memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        memory.write_obj(0xff_u8, GuestAddress(STATUS)).unwrap();
        let describe = |number: u64, address: u64, len: u32, flags: u16, next: u16| {
            let at = DESCRIPTORS + number * 16;
            memory.write_obj(address, GuestAddress(at)).unwrap();
            memory.write_obj(len, GuestAddress(at + 8)).unwrap();
            memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
            memory.write_obj(next, GuestAddress(at + 14)).unwrap();
        };
        let with_data = kind != FLUSH;
        describe(0, HEADER, 16, NEXT, if with_data { 1 } else { 2 });
        describe(1, DATA, 512, NEXT | data_flags, 2);
        describe(2, STATUS, 1, DEVICE_WRITES, 0);
        let entry = AVAILABLE + 4 + 2 * u64::from(self.submitted % SIZE);
        memory.write_obj(0_u16, GuestAddress(entry)).unwrap();
        self.submitted = self.submitted.wrapping_add(1);
        let order = Ordering::Release;
        memory
            .store(self.submitted, GuestAddress(AVAILABLE + 2), order)
            .unwrap();
        self.kick.write(1).unwrap();
    }

    /// Waits for the interrupt of the answer.
    fn finish(&mut self) {
        let start = Instant::now();
        loop {
            let interrupted = self.call.0.read().is_ok();
            if interrupted && self.answered() > 0 {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "no answer");
            std::thread::sleep(Duration::from_micros(50));
        }
        self.seen = self.seen.wrapping_add(1);
        assert_eq!(self.used_index(), self.seen, "answered once");
        let status: u8 = self.memory.read_obj(GuestAddress(STATUS)).unwrap();
        assert_eq!(status, 0, "the request failed");
    }
}
