//! The device that vCPU threads and the reconnect thread share: what the driver wants, and what is still to be done
//! about it.
//!
//! A vCPU thread takes the lock for a moment only, because nobody holds it while talking to a backend. The copy of the
//! configuration space has a lock of its own.

use std::collections::{BTreeSet, VecDeque};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::backend::Backend;
use super::config::{BackendEvent, FrontendConfig, Host};
use super::config_space::ConfigCopy;
use super::driver_setup::DriverSetup;
use super::error::{Fault, FrontendError, Result};
use super::vrings::Start;
use super::{device_type, memory, probe};
use crate::hypervisor::MsiVector;
use crate::virtio::{ActiveQueue, DeviceEvents};

/// Configuration writes that wait for the reconnect thread. More of them are dropped.
const MAX_WRITES: usize = 16;

pub(super) struct Device {
    config: FrontendConfig,
    memory: GuestMemoryMmap,
    host: Host,
    /// The features offered to drivers, whichever backend is there.
    features: u64,
    /// Those of them that the monitor implements.
    local: u64,
    queue_max_sizes: Vec<u16>,
    copy: Mutex<ConfigCopy>,
    events: OnceLock<Arc<dyn DeviceEvents>>,
    state: Mutex<State>,
    /// Readable when there is work for the reconnect thread. No other process has it, so writing never blocks.
    wake: OwnedFd,
    /// The first backend, until the reconnect thread takes it.
    first: Mutex<Option<Backend>>,
}

#[derive(Default)]
struct State {
    /// What the driver has set up.
    setup: Option<DriverSetup>,
    /// The driver has reset the device, and the backend may still access the vrings.
    stopping: bool,
    /// The machine is paused: vrings are not started.
    paused: bool,
    /// The machine is paused, and the backend may still access the vrings.
    pausing: bool,
    /// How the vrings are to be started, while they are not.
    start: Option<Start>,
    /// Queues whose vector has changed.
    calls: BTreeSet<u16>,
    /// Queues that were kicked by a write that came to the monitor.
    kicks: BTreeSet<u16>,
    writes: VecDeque<(u32, Vec<u8>)>,
    /// The reconnect thread's connection. Shutting it down ends whatever the thread waits for.
    socket: Option<UnixStream>,
    /// The device was removed.
    closed: bool,
}

/// What the reconnect thread does next.
pub(super) enum Work {
    /// Stop the vrings, because the driver has reset the device.
    Stop(DriverSetup),
    /// Stop the vrings, because the machine is paused.
    Pause(DriverSetup),
    /// Start the vrings.
    Start(DriverSetup, Start),
    /// Give the backend the queue's new call eventfd.
    Call(ActiveQueue),
    /// Signal this kick eventfd.
    Kick(Arc<EventFd>),
    /// Write the configuration space.
    Write(u32, Vec<u8>),
}

impl Device {
    /// Connects to the first backend, which determines the features and queues that drivers are offered.
    pub(super) fn connect(
        config: FrontendConfig,
        memory: GuestMemoryMmap,
        host: Host,
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
        let establish = || Backend::establish(&config.socket, &host.connector, slots);
        let backend = probe::connect(&establish)?;
        let kind = config.device_type;
        let queues = device_type::queue_count(kind, config.num_queues, backend.queues)?;
        let mut sizes = config.queue_sizes.clone();
        sizes.resize(queues.into(), last_size);
        let backend = probe::find_queue_sizes(backend, &establish, &mut sizes)?;
        let backend_config = backend.config(kind)?;
        let features = device_type::features(
            kind,
            backend.guest_features(),
            queues,
            backend_config.is_some(),
            &config.options,
        )?;
        let empty = || vec![0; device_type::config_len(kind)];
        let mut bytes = backend_config.unwrap_or_else(empty);
        device_type::adjust(kind, &mut bytes, queues, &config.options)?;
        let local = features & !backend.guest_features();
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Self {
            features,
            local,
            queue_max_sizes: sizes,
            copy: Mutex::new(ConfigCopy::new(bytes)),
            events: OnceLock::new(),
            state: Mutex::default(),
            wake: eventfd(0, flags).map_err(std::io::Error::from)?,
            first: Mutex::new(Some(backend)),
            config,
            memory,
            host,
        })
    }

    pub(super) fn socket(&self) -> &Path {
        &self.config.socket
    }

    /// Connects to a backend again.
    pub(super) fn establish(&self) -> Result<Backend> {
        let slots = memory::needs_slots(&self.memory);
        Backend::establish(self.socket(), &self.host.connector, slots)
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

    /// Those of the features that the monitor implements, so that no backend need offer them.
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

    /// What the reconnect thread does before anything else.
    pub(super) fn enter_thread(&self) {
        (self.host.enter_thread)();
    }

    pub(super) fn take_first_backend(&self) -> Option<Backend> {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.take()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy(&self) -> MutexGuard<'_, ConfigCopy> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_thread(&self) {
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

    /// Calls the observer, unless the device was removed: then the loss of the backend is expected.
    pub(super) fn report(&self, event: BackendEvent<'_>) {
        if !self.is_closed() {
            (self.host.observer)(self.socket(), event);
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
        let Some(offset) = self.copy().checked_offset(offset, data) else {
            return;
        };
        if !device_type::is_written_to_backend(self.device_type(), offset, data.len()) {
            return self.copy().put(offset, data);
        }
        let mut state = self.state();
        if state.writes.len() < MAX_WRITES {
            self.copy().put_for_backend(offset, data);
            state.writes.push_back((offset, data.to_vec()));
            self.wake_thread();
        }
    }

    pub(super) fn activate(&self, features: u64, queues: Vec<ActiveQueue>) {
        let mut state = self.state();
        state.setup = Some(DriverSetup { features, queues });
        state.start = Some(Start::Fresh);
        self.wake_thread();
    }

    pub(super) fn set_call(&self, index: u16, call: Arc<dyn MsiVector>) {
        let mut state = self.state();
        let queues = state.setup.iter_mut().flat_map(|setup| &mut setup.queues);
        let Some(queue) = queues.into_iter().find(|queue| queue.index == index) else {
            return;
        };
        queue.call = call;
        state.calls.insert(index);
        self.wake_thread();
    }

    pub(super) fn notify(&self, index: u16) {
        if usize::from(index) < self.queue_max_sizes.len() {
            self.state().kicks.insert(index);
            self.wake_thread();
        }
    }

    pub(super) fn reset(&self) {
        let mut state = self.state();
        state.stopping = state.setup.is_some();
        self.wake_thread();
    }

    /// Whether the last reset is complete.
    pub(super) fn is_stopped(&self) -> bool {
        let state = self.state();
        // A removed device completes no reset, and no driver waits for one.
        !state.stopping || state.closed
    }

    /// Has the vrings stopped until [`Self::resume`].
    pub(super) fn pause(&self) {
        let mut state = self.state();
        state.paused = true;
        state.pausing = state.setup.is_some();
        self.wake_thread();
    }

    pub(super) fn resume(&self) {
        let mut state = self.state();
        state.paused = false;
        state.pausing = false;
        self.wake_thread();
    }

    /// The machine is paused and no backend accesses the vrings any more.
    pub(super) fn vrings_paused(&self) {
        let state = &mut *self.state();
        state.pausing = false;
        if state.setup.is_some() {
            state.start.get_or_insert(Start::Resumed);
        }
    }

    /// The most urgent work.
    pub(super) fn next_work(&self) -> Option<Work> {
        let state = &mut *self.state();
        if state.stopping {
            return state.setup.clone().map(Work::Stop);
        }
        if state.pausing {
            return state.setup.clone().map(Work::Pause);
        }
        if state.paused {
            return None;
        }
        if let Some(start) = state.start {
            return start_work(state).map(|setup| Work::Start(setup, start));
        }
        let queue = |index: u16| {
            let mut queues = state.setup.iter().flat_map(|setup| &setup.queues);
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

    /// The work that needs no backend: stopping vrings, which no backend has while there is none.
    pub(super) fn next_work_without_backend(&self) -> Option<Work> {
        let state = self.state();
        match (state.stopping, state.pausing) {
            (true, _) => state.setup.clone().map(Work::Stop),
            (false, true) => state.setup.clone().map(Work::Pause),
            (false, false) => None,
        }
    }

    /// What to start at a backend that has just connected, if anything. Configuration writes that wait are dropped: the
    /// backend gets [`Self::written_config`].
    pub(super) fn setup_to_start(&self) -> Option<DriverSetup> {
        let state = &mut *self.state();
        state.writes.clear();
        match state.stopping || state.paused {
            true => None,
            false => start_work(state),
        }
    }

    /// The reset is complete: no backend accesses the vrings any more.
    pub(super) fn stopped(&self) {
        let mut state = self.state();
        // The reset cancels all that the driver asked for before it.
        state.setup = None;
        state.stopping = false;
        state.pausing = false;
        state.start = None;
        state.calls.clear();
        state.kicks.clear();
        state.writes.clear();
        self.copy().forget_written();
    }

    /// What the driver has written, for a backend that has just connected.
    pub(super) fn written_config(&self) -> Vec<(u32, Vec<u8>)> {
        self.copy().written()
    }

    /// The backend refused what the driver wrote.
    pub(super) fn forget_written_config(&self) {
        self.copy().forget_written();
    }

    /// Updates the copy of the configuration space with what a backend returned.
    pub(super) fn update_config(&self, config: Option<Vec<u8>>) -> Result<()> {
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

    /// Notes the reconnect thread's connection. Returns `false` when the device was removed: then the thread ends.
    pub(super) fn set_socket(&self, socket: Option<UnixStream>) -> bool {
        let mut state = self.state();
        state.socket = socket;
        !state.closed
    }

    /// Removes the device. The reconnect thread ends, whatever it is waiting for.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        if let Some(socket) = state.socket.take() {
            // It fails when the backend has closed the connection already.
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.wake_thread();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }
}

/// The setup to start. Its call eventfds are the current ones, so no change of them is left to pass on.
fn start_work(state: &mut State) -> Option<DriverSetup> {
    state.start = None;
    state.calls.clear();
    state.setup.clone()
}
