//! One device's dealings with its backends, of which there may be several, one after the other.
//!
//! vCPU threads (activation, reset, configuration) and the supervisor's thread (a new backend) meet here at one lock.
//! It is held while requests are answered, and answers have their time, so nobody waits for ever. The copy of the configuration space has
//! its own lock: reading it never waits for a backend.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vm_memory::GuestMemoryMmap;

use super::config_space::ConfigCopy;
use super::connection::STEP;
use super::error::{Fault, FrontendError, Result};
use super::handshake::Link;
use super::vrings::{self, Active, Inflight, Start};
use super::{BackendEvent, FrontendConfig, Observer, device_type, memory};
use crate::hypervisor::MsiVector;
use crate::virtio::{ActiveQueue, DeviceEvents};

const FIRST_ATTEMPTS: u32 = 20;
const FIRST_PAUSE: Duration = Duration::from_millis(20);

pub(super) struct Session {
    config: FrontendConfig,
    memory: GuestMemoryMmap,
    observer: Observer,
    /// What drivers are offered, whichever backend is there.
    features: u64,
    /// Those of them that are the monitor's own doing.
    local: u64,
    queue_max_sizes: Vec<u16>,
    copy: Mutex<ConfigCopy>,
    events: OnceLock<Arc<dyn DeviceEvents>>,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    /// The backend, while there is one.
    pub(super) link: Option<Link>,
    /// What it works on, or would.
    active: Option<Active>,
    inflight: Option<Inflight>,
    /// The device is gone.
    closed: bool,
}

impl Session {
    /// Connects to the first backend, which settles what drivers are offered.
    pub(super) fn connect(
        config: FrontendConfig,
        memory: GuestMemoryMmap,
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
        let link = first_link(&config.socket, memory::needs_slots(&memory))?;
        let kind = config.device_type;
        let queues = device_type::queue_count(kind, config.num_queues, link.queues)?;
        let backend_config = link.config(kind)?;
        let features = device_type::features(
            kind,
            link.guest_features(),
            queues,
            backend_config.is_some(),
            &config.particulars,
        )?;
        let empty = || vec![0; device_type::config_len(kind)];
        let mut bytes = backend_config.unwrap_or_else(empty);
        device_type::adjust(kind, &mut bytes, queues, &config.particulars)?;
        let local = features & !link.guest_features();
        let mut sizes = config.queue_sizes.clone();
        sizes.resize(queues.into(), last_size);
        let state = State {
            link: Some(link),
            ..State::default()
        };
        Ok(Self {
            features,
            local,
            queue_max_sizes: sizes,
            copy: Mutex::new(ConfigCopy::new(bytes)),
            events: OnceLock::new(),
            state: Mutex::new(state),
            config,
            memory,
            observer,
        })
    }

    pub(super) fn socket(&self) -> &Path {
        &self.config.socket
    }

    pub(super) fn device_type(&self) -> u16 {
        self.config.device_type
    }

    pub(super) fn features(&self) -> u64 {
        self.features
    }

    pub(super) fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_max_sizes
    }

    pub(super) fn attach(&self, events: Arc<dyn DeviceEvents>) {
        // There is one transport and it attaches once.
        let _ = self.events.set(events);
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy(&self) -> MutexGuard<'_, ConfigCopy> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn report(&self, event: BackendEvent<'_>) {
        (self.observer)(self.socket(), event);
    }

    pub(super) fn report_fault(&self, fault: Fault) {
        let socket = self.socket().to_path_buf();
        self.report(BackendEvent::Unusable(&FrontendError { socket, fault }));
    }

    pub(super) fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.copy().read(offset, data);
    }

    pub(super) fn write_config(&self, offset: u64, data: &[u8]) {
        let Some(offset) = self.copy().place(offset, data) else {
            return;
        };
        let mut state = self.state();
        let config = VhostUserProtocolFeatures::CONFIG;
        let taken = match &state.link {
            Some(link) if link.has(config) => {
                link.connection.begin(STEP);
                link.connection.set_config(offset, data)
            }
            // Whoever comes back is told.
            None => Ok(()),
            Some(_) => return,
        };
        if taken.is_ok() {
            self.copy().note(offset, data);
        }
        self.settle(&mut state, taken);
    }

    pub(super) fn activate(&self, features: u64, queues: Vec<ActiveQueue>) {
        let mut state = self.state();
        let State {
            link,
            active,
            inflight,
            ..
        } = &mut *state;
        let active = active.insert(Active { features, queues });
        let started = match link {
            Some(link) => vrings::start(link, &self.memory, active, inflight, Start::Fresh),
            // The supervisor starts them on the next backend.
            None => Ok(()),
        };
        self.settle_strictly(&mut state, started);
    }

    pub(super) fn set_call(&self, index: u16, call: Arc<dyn MsiVector>) {
        let mut state = self.state();
        let State { link, active, .. } = &mut *state;
        let queues = active.iter_mut().flat_map(|active| &mut active.queues);
        let Some(queue) = queues.into_iter().find(|queue| queue.index == index) else {
            return;
        };
        queue.call = call.clone();
        let told = match link {
            Some(link) => {
                link.connection.begin(STEP);
                link.connection.set_vring_call(index, call.eventfd())
            }
            None => Ok(()),
        };
        // The backend may have signalled the former one a moment ago.
        let _ = call.eventfd().write(1);
        self.settle_strictly(&mut state, told);
    }

    pub(super) fn reset(&self) {
        let mut state = self.state();
        let stopped = match (state.active.take(), &state.link) {
            (Some(active), Some(link)) => vrings::stop(link, &active),
            _ => Ok(()),
        };
        // Nothing is in flight any more, and the next driver's rings begin at zero.
        state.inflight = None;
        self.copy().forget_written();
        self.settle_strictly(&mut state, stopped);
    }

    /// After a request that the backend may refuse: anything worse ends the connection.
    fn settle(&self, state: &mut State, result: Result<()>) {
        match result {
            Err(fault) if !fault.leaves_connection() => self.drop_link(state, fault),
            _ => {}
        }
    }

    /// After a request that the backend may not refuse.
    fn settle_strictly(&self, state: &mut State, result: Result<()>) {
        if let Err(fault) = result {
            self.drop_link(state, fault);
        }
    }

    /// Ends the connection. The supervisor sees that, and looks for another backend.
    fn drop_link(&self, state: &mut State, fault: Fault) {
        state.link = None;
        if !matches!(fault, Fault::Closed) {
            self.report_fault(fault);
        }
    }

    /// Gives a backend that came back everything the former one had.
    pub(super) fn resume(&self) -> Result<()> {
        let link = Link::establish(self.socket(), memory::needs_slots(&self.memory))?;
        let config = link.config(self.device_type())?;
        let mut state = self.state();
        if state.closed {
            return Ok(());
        }
        let State {
            active, inflight, ..
        } = &mut *state;
        self.check_successor(&link, inflight.is_some())?;
        if link.has(VhostUserProtocolFeatures::CONFIG) {
            let written = self.copy().written();
            for (offset, data) in written {
                link.connection.set_config(offset, &data)?;
            }
        }
        if let Some(active) = active {
            vrings::start(&link, &self.memory, active, inflight, Start::Resumed)?;
        }
        state.link = Some(link);
        drop(state);
        self.take_config(config)
    }

    /// Whether a backend that came back can take over from the former one.
    fn check_successor(&self, link: &Link, notes: bool) -> Result<()> {
        let lost = self.features & !(link.guest_features() | self.local);
        if lost != 0 {
            return Err(Fault::LostFeatures(lost));
        }
        if notes && !link.has(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            return Err(Fault::Lacks("notes on requests in flight (INFLIGHT_SHMFD)"));
        }
        let queues = Some(self.queues());
        device_type::queue_count(self.device_type(), queues, link.queues).map(|_| ())
    }

    fn queues(&self) -> u16 {
        u16::try_from(self.queue_max_sizes.len()).unwrap_or(u16::MAX)
    }

    /// The connection is no more.
    pub(super) fn unlink(&self) {
        self.state().link = None;
    }

    /// The device is no more.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.link = None;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// The backend says that its configuration is a different one now.
    pub(super) fn refresh_config(&self) -> Result<()> {
        let mut state = self.state();
        let config = match &state.link {
            Some(link) => {
                link.connection.begin(STEP);
                link.config(self.device_type())
            }
            None => return Ok(()),
        };
        match config {
            Ok(config) => {
                drop(state);
                self.take_config(config)
            }
            Err(fault) => {
                self.drop_link(&mut state, fault);
                Ok(())
            }
        }
    }

    fn take_config(&self, config: Option<Vec<u8>>) -> Result<()> {
        let Some(mut bytes) = config else {
            return Ok(());
        };
        let particulars = &self.config.particulars;
        device_type::adjust(self.device_type(), &mut bytes, self.queues(), particulars)?;
        let changed = self.copy().replace(bytes);
        if let (true, Some(events)) = (changed, self.events.get()) {
            events.config_changed();
        }
        Ok(())
    }
}

/// Connects at the start. A socket on which nobody listens may be one on which somebody is about to: it is bound first.
fn first_link(socket: &Path, slots: bool) -> Result<Link> {
    for _ in 0..FIRST_ATTEMPTS {
        match Link::establish(socket, slots) {
            Err(Fault::NobodyListens) => thread::sleep(FIRST_PAUSE),
            result => return result,
        }
    }
    Link::establish(socket, slots)
}
