//! What the driver wants of a device, and what its worker has yet to do about it.
//!
//! vCPU threads come here for activation, reset and configuration, and leave at once: the lock is never held while a backend is
//! spoken to, which is the worker's thread alone. The copy of the configuration space has its own lock.

use std::collections::{BTreeSet, VecDeque};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vhost::vhost_user::message::FrontendReq;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::config_space::ConfigCopy;
use super::error::{Fault, FrontendError, Result};
use super::handshake::Link;
use super::vrings::Active;
use super::{BackendEvent, Connector, FrontendConfig, Observer, device_type, memory};
use crate::hypervisor::MsiVector;
use crate::virtio::{ActiveQueue, DeviceEvents};

const FIRST_ATTEMPTS: u32 = 20;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Shorter queues are not tried.
const SHORTEST_QUEUE: u16 = 16;
/// Configuration writes that wait for the worker. A driver that writes more of them is not served.
const MAX_WRITES: usize = 16;

pub(super) struct Session {
    config: FrontendConfig,
    memory: GuestMemoryMmap,
    connector: Connector,
    observer: Observer,
    /// What drivers are offered, whichever backend is there.
    features: u64,
    /// Those of them that are the monitor's own doing.
    local: u64,
    queue_max_sizes: Vec<u16>,
    copy: Mutex<ConfigCopy>,
    events: OnceLock<Arc<dyn DeviceEvents>>,
    state: Mutex<State>,
    /// Readable when there is work. Nobody else has it, so writing never blocks.
    wake: OwnedFd,
    /// The first backend, until the worker takes it over.
    first: Mutex<Option<Link>>,
}

#[derive(Default)]
struct State {
    /// What the driver has set up.
    active: Option<Active>,
    /// The driver has taken its queues back; the backend may still have them.
    stopping: bool,
    /// The queues are not yet a backend's.
    unstarted: bool,
    /// Queues whose interrupts go elsewhere now.
    calls: BTreeSet<u16>,
    /// Queues that were kicked through the monitor.
    kicks: BTreeSet<u16>,
    writes: VecDeque<(u32, Vec<u8>)>,
    /// The connection the worker has, to end it.
    socket: Option<UnixStream>,
    /// The device is gone.
    closed: bool,
}

/// What the worker is to do next.
pub(super) enum Work {
    /// Take these queues back.
    Stop(Active),
    /// Hand these queues over.
    Start(Active),
    /// Say where this queue's interrupts go.
    Call(ActiveQueue),
    /// Signal this.
    Kick(Arc<EventFd>),
    /// Write the configuration space.
    Write(u32, Vec<u8>),
}

impl Session {
    /// Connects to the first backend, which settles what drivers are offered.
    pub(super) fn connect(
        config: FrontendConfig,
        memory: GuestMemoryMmap,
        connector: Connector,
        observer: Observer,
    ) -> Result<Self> {
        let fits = |size: &u16| size.is_power_of_two() && *size <= 1 << 15;
        let Some(last_size) = config.queue_sizes.last().copied() else {
            return Err(Fault::Options("a queue has a size"));
        };
        if !config.queue_sizes.iter().all(fits) {
            return Err(Fault::Options(
                "a queue's size is a power of two, at most 32768",
            ));
        }
        memory::check(&memory)?;
        let slots = memory::needs_slots(&memory);
        let establish = || Link::establish(&config.socket, &connector, slots);
        let link = first_link(&establish)?;
        let kind = config.device_type;
        let queues = device_type::queue_count(kind, config.num_queues, link.queues)?;
        let mut sizes = config.queue_sizes.clone();
        sizes.resize(queues.into(), last_size);
        let link = settle_sizes(link, &establish, &mut sizes)?;
        let backend_config = link.config(kind)?;
        let features = device_type::features(
            kind,
            link.guest_features(),
            queues,
            backend_config.is_some(),
            &config.options,
        )?;
        let empty = || vec![0; device_type::config_len(kind)];
        let mut bytes = backend_config.unwrap_or_else(empty);
        device_type::adjust(kind, &mut bytes, queues, &config.options)?;
        let local = features & !link.guest_features();
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Self {
            features,
            local,
            queue_max_sizes: sizes,
            copy: Mutex::new(ConfigCopy::new(bytes)),
            events: OnceLock::new(),
            state: Mutex::default(),
            wake: eventfd(0, flags).map_err(std::io::Error::from)?,
            first: Mutex::new(Some(link)),
            config,
            memory,
            connector,
            observer,
        })
    }

    pub(super) fn socket(&self) -> &Path {
        &self.config.socket
    }

    /// A new connection to a backend.
    pub(super) fn establish(&self) -> Result<Link> {
        let slots = memory::needs_slots(&self.memory);
        Link::establish(self.socket(), &self.connector, slots)
    }

    pub(super) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    pub(super) fn device_type(&self) -> u16 {
        self.config.device_type
    }

    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// Those of the features that need no backend.
    pub(super) fn local_features(&self) -> u64 {
        self.local
    }

    pub(super) fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_max_sizes
    }

    pub(super) fn queues(&self) -> u16 {
        u16::try_from(self.queue_max_sizes.len()).unwrap_or(u16::MAX)
    }

    pub(super) fn attach(&self, events: Arc<dyn DeviceEvents>) {
        // There is one transport and it attaches once.
        let _ = self.events.set(events);
    }

    pub(super) fn take_first_link(&self) -> Option<Link> {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.take()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy(&self) -> MutexGuard<'_, ConfigCopy> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_worker(&self) {
        // It only fails when the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Becomes readable when there is work.
    pub(super) fn woken(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// To be called before looking for work.
    pub(super) fn clear_woken(&self) {
        // It only fails when there is nothing to clear.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    /// Tells the observer, unless the device is gone: an end is no loss.
    pub(super) fn report(&self, event: BackendEvent<'_>) {
        if !self.is_closed() {
            (self.observer)(self.socket(), event);
        }
    }

    pub(super) fn report_fault(&self, fault: Fault) {
        let socket = self.socket().to_path_buf();
        self.report(BackendEvent::Unusable(&FrontendError { socket, fault }));
    }

    pub(super) fn needs_reset(&self) {
        if let Some(events) = self.events.get() {
            events.needs_reset();
        }
    }

    pub(super) fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.copy().read(offset, data);
    }

    pub(super) fn write_config(&self, offset: u64, data: &[u8]) {
        let Some(offset) = self.copy().place(offset, data) else {
            return;
        };
        if !device_type::is_backends(self.device_type(), offset, data.len()) {
            return self.copy().put(offset, data);
        }
        let mut state = self.state();
        if state.writes.len() < MAX_WRITES {
            self.copy().note(offset, data);
            state.writes.push_back((offset, data.to_vec()));
            self.wake_worker();
        }
    }

    pub(super) fn activate(&self, features: u64, queues: Vec<ActiveQueue>) {
        let mut state = self.state();
        state.active = Some(Active { features, queues });
        state.unstarted = true;
        self.wake_worker();
    }

    pub(super) fn set_call(&self, index: u16, call: Arc<dyn MsiVector>) {
        let mut state = self.state();
        let queues = state
            .active
            .iter_mut()
            .flat_map(|active| &mut active.queues);
        let Some(queue) = queues.into_iter().find(|queue| queue.index == index) else {
            return;
        };
        queue.call = call;
        state.calls.insert(index);
        self.wake_worker();
    }

    pub(super) fn notify(&self, index: u16) {
        if usize::from(index) < self.queue_max_sizes.len() {
            self.state().kicks.insert(index);
            self.wake_worker();
        }
    }

    pub(super) fn reset(&self) {
        let mut state = self.state();
        state.stopping = state.active.is_some();
        self.wake_worker();
    }

    /// Whether the last reset is complete.
    pub(super) fn is_stopped(&self) -> bool {
        let state = self.state();
        // A device that is gone has no driver to wait for it.
        !state.stopping || state.closed
    }

    /// What is to be done first of what there is to do.
    pub(super) fn next_work(&self) -> Option<Work> {
        let state = &mut *self.state();
        if state.stopping {
            return state.active.clone().map(Work::Stop);
        }
        if state.unstarted {
            return self.start_work(state).map(Work::Start);
        }
        let queue = |index: u16| {
            let mut queues = state.active.iter().flat_map(|active| &active.queues);
            queues.find(|queue| queue.index == index).cloned()
        };
        while let Some(index) = state.calls.pop_first() {
            if let Some(queue) = queue(index) {
                return Some(Work::Call(queue));
            }
        }
        while let Some(index) = state.kicks.pop_first() {
            if let Some(queue) = queue(index) {
                return Some(Work::Kick(queue.kick));
            }
        }
        let (offset, data) = state.writes.pop_front()?;
        Some(Work::Write(offset, data))
    }

    /// The queues that are to be taken back, if they are.
    pub(super) fn queues_to_stop(&self) -> Option<Active> {
        let state = self.state();
        match state.stopping {
            true => state.active.clone(),
            false => None,
        }
    }

    /// The queues to hand to a backend that has none, if the driver wants that. What was asked before is part of it.
    pub(super) fn queues_to_start(&self) -> Option<Active> {
        let state = &mut *self.state();
        state.writes.clear();
        match state.stopping {
            true => None,
            false => self.start_work(state),
        }
    }

    fn start_work(&self, state: &mut State) -> Option<Active> {
        state.unstarted = false;
        state.calls.clear();
        state.active.clone()
    }

    /// The backend no longer has the queues.
    pub(super) fn stopped(&self) {
        let mut state = self.state();
        // What the driver asked for before the reset is void.
        state.active = None;
        state.stopping = false;
        state.unstarted = false;
        state.calls.clear();
        state.kicks.clear();
        state.writes.clear();
        self.copy().forget_written();
    }

    /// What the driver has written, for a backend that does not know.
    pub(super) fn written_config(&self) -> Vec<(u32, Vec<u8>)> {
        self.copy().written()
    }

    /// The backend refused what the driver wrote.
    pub(super) fn forget_written_config(&self) {
        self.copy().forget_written();
    }

    /// Takes over what a backend says its configuration space is.
    pub(super) fn take_config(&self, config: Option<Vec<u8>>) -> Result<()> {
        let Some(mut bytes) = config else {
            return Ok(());
        };
        let options = &self.config.options;
        device_type::adjust(self.device_type(), &mut bytes, self.queues(), options)?;
        let changed = self.copy().replace(bytes);
        if let (true, Some(events)) = (changed, self.events.get()) {
            events.config_changed();
        }
        Ok(())
    }

    /// The worker has this connection now, or none. Returns whether it may go on.
    pub(super) fn set_socket(&self, socket: Option<UnixStream>) -> bool {
        let mut state = self.state();
        state.socket = socket;
        !state.closed
    }

    /// The device is no more. The worker ends, whatever it is waiting for.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        if let Some(socket) = state.socket.take() {
            // It fails when the other end was faster.
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.wake_worker();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }
}

/// Connects at the start. A socket on which nobody listens may be one on which somebody is about to: it is bound first.
fn first_link(establish: &dyn Fn() -> Result<Link>) -> Result<Link> {
    for _ in 0..FIRST_ATTEMPTS {
        match establish() {
            Err(Fault::NobodyListens) => thread::sleep(FIRST_PAUSE),
            result => return result,
        }
    }
    establish()
}

/// Finds how long the backend lets queues be: vhost-user has no request for it, so they are tried. A backend that refuses one
/// often ends the connection, or dies, so this is better done before there is a driver.
fn settle_sizes(
    mut link: Link,
    establish: &dyn Fn() -> Result<Link>,
    sizes: &mut Vec<u16>,
) -> Result<Link> {
    let wanted = sizes.clone();
    while let Err(fault) = link.try_sizes(sizes) {
        match fault {
            Fault::Refused(FrontendReq::SET_VRING_NUM) | Fault::Closed => {}
            fault => return Err(fault),
        }
        drop(link);
        link = match first_link(establish) {
            Ok(link) => link,
            // It does not come again after it refused.
            Err(_) => return Err(Fault::QueuesTooLong),
        };
        let longest = sizes.iter().copied().max().unwrap_or_default();
        if longest <= SHORTEST_QUEUE {
            // It is not the size. It may yet take them from a driver.
            *sizes = wanted;
            return Ok(link);
        }
        for size in sizes.iter_mut() {
            *size = (*size).min(longest / 2);
        }
    }
    Ok(link)
}
