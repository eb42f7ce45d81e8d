//! The thread that talks to a device's backend. It passes on what the driver asks for, watches the connection, and
//! reconnects when the backend dies. No other thread waits for a backend.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::backend::Backend;
use super::backend_channel::BackendChannel;
use super::config::BackendEvent;
use super::connection::STEP_TIMEOUT;
use super::device::{Device, Work};
use super::device_type::{self, TYPE_NET};
use super::driver_setup::DriverSetup;
use super::error::{Fault, Result};
use super::inflight::Inflight;
use super::inflight_tracker::InflightTracker;
use super::signal::signal;
use super::vrings::{self, Start};

/// The pause between two attempts to connect: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// A backend that stays for less keeps dying: the pause before the next attempt grows.
const STABLE: Duration = Duration::from_secs(5);

/// How often the in-flight tracker reads busy rings: a ring of 128 entries does not wrap in that time.
const TRACK_INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000,
};

pub(super) fn start(device: &Arc<Device>) -> io::Result<()> {
    let first = device.take_first_backend();
    let mut thread = ReconnectThread {
        device: device.clone(),
        backend: None,
        started: false,
        inflight: Inflight::default(),
    };
    thread::Builder::new()
        .name("vhost-user".into())
        .spawn(move || {
            thread.device.enter_thread();
            if let Some(backend) = first {
                thread.set_backend(backend);
            }
            thread.run();
        })?;
    Ok(())
}

struct ReconnectThread {
    device: Arc<Device>,
    /// The backend, while there is one.
    backend: Option<Backend>,
    /// The backend may access the vrings.
    started: bool,
    /// Kept from one backend to the next.
    inflight: Inflight,
}

impl ReconnectThread {
    fn run(&mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let since = Instant::now();
            self.serve();
            if self.device.is_closed() {
                return;
            }
            self.device.report(BackendEvent::Lost);
            if since.elapsed() < STABLE {
                self.wait(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            } else {
                pause = FIRST_PAUSE;
            }
            if !self.reconnect() {
                return;
            }
            self.device.report(BackendEvent::Back);
        }
    }

    /// Does the device's work until the backend is lost or the device removed.
    fn serve(&mut self) {
        let mut channel = self
            .backend
            .as_mut()
            .and_then(|backend| backend.channel.take());
        // Whether the rings the tracker reads have changed of late.
        let mut busy = false;
        loop {
            self.device.clear_woken();
            while let Some(work) = self.device.next_work() {
                self.work(work);
                if self.device.is_closed() {
                    return;
                }
            }
            let Some(backend) = &self.backend else { return };
            if self.device.is_closed() {
                return;
            }
            let woken = PollFd::from_borrowed_fd(self.device.woken(), PollFlags::IN);
            // Replies are read where the request is sent. Here the connection is watched for its end.
            let mut fds = vec![woken, PollFd::new(&backend.connection, PollFlags::RDHUP)];
            let message_at = channel.as_ref().map(|channel| {
                fds.push(PollFd::new(channel, PollFlags::IN));
                fds.len() - 1
            });
            let interrupts = self
                .inflight
                .tracker
                .as_ref()
                .map(InflightTracker::interrupts);
            fds.extend(interrupts.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            match poll(&mut fds, busy.then_some(&TRACK_INTERVAL)) {
                Ok(_) | Err(Errno::INTR) => {}
                // Without poll the connection cannot be watched.
                Err(_) => return self.lose(Fault::Closed),
            }
            let is_ready =
                |number: usize| fds.get(number).is_some_and(|fd| !fd.revents().is_empty());
            let (lost, message) = (is_ready(1), message_at.is_some_and(is_ready));
            drop(fds);
            if let Some(tracker) = &mut self.inflight.tracker {
                busy = tracker.pass_on(self.device.memory());
            }
            if lost {
                return self.lose(Fault::Closed);
            }
            if message {
                self.read_channel(&mut channel);
            }
        }
    }

    fn work(&mut self, work: Work) {
        let result = match (work, &self.backend) {
            (Work::Stop(setup), _) => self.stop(&setup),
            (Work::Pause(setup), _) => self.pause(&setup),
            (Work::Kick(kick), _) => {
                signal(&kick);
                Ok(())
            }
            // The next backend gets the current state when it connects.
            (_, None) => Ok(()),
            (Work::Start(setup, start), Some(_)) => self.start(&setup, start),
            (Work::Call(queue), Some(backend)) => {
                let sent = match &mut self.inflight.tracker {
                    Some(tracker) => {
                        tracker.set_call(&queue);
                        Ok(())
                    }
                    None => {
                        backend.connection.set_deadline(STEP_TIMEOUT);
                        let connection = &backend.connection;
                        let eventfd = queue.call.eventfd().as_raw_fd();
                        connection
                            .set_vring_call(queue.index, eventfd)
                            .and_then(|()| connection.sync())
                    }
                };
                // The backend may just have signalled the former eventfd.
                queue.call.signal();
                sent
            }
            (Work::Write(offset, data), Some(backend))
                if backend.has(VhostUserProtocolFeatures::CONFIG) =>
            {
                backend.connection.set_deadline(STEP_TIMEOUT);
                match backend.connection.set_config(offset, &data) {
                    Err(Fault::Refused(_)) => {
                        self.device.forget_written_config();
                        self.refresh_config()
                    }
                    result => result,
                }
            }
            (Work::Write(..), Some(_)) => Ok(()),
        };
        if let Err(fault) = result {
            self.lose(fault);
        }
    }

    fn start(&mut self, setup: &DriverSetup, start: Start) -> Result<()> {
        let Some(backend) = &self.backend else {
            return Ok(());
        };
        let memory = self.device.memory();
        if !self.inflight.is_recorded_by_backend() {
            let needs_tracker = self.needs_tracker(backend);
            if let Some(tracker) = &mut self.inflight.tracker {
                if !tracker.restore(memory) {
                    self.device.needs_reset();
                    self.device.report_fault(Fault::Forgotten);
                    return Ok(());
                }
            } else if needs_tracker {
                let tracker = InflightTracker::new(setup).map_err(io::Error::from)?;
                self.inflight.tracker = Some(tracker);
            }
        }
        // Even a start that fails may have given the backend some vrings.
        self.started = true;
        let started = vrings::start(backend, memory, setup, &mut self.inflight, start);
        if let (Err(Fault::Refused(_)), Start::Fresh) = (&started, start) {
            // The next backend may accept the vrings. Until then the driver must not wait for requests in vain.
            self.device.needs_reset();
        }
        started
    }

    /// Whether the monitor has to track the requests in flight, because the backend does not. Network devices need no
    /// tracker: they complete buffers in order.
    fn needs_tracker(&self, backend: &Backend) -> bool {
        self.device.device_type() != TYPE_NET
            && !backend.has(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    }

    /// Completes the driver's reset.
    fn stop(&mut self, setup: &DriverSetup) -> Result<()> {
        let stopped = self.stop_vrings(setup);
        // No request is in flight any more, and the next driver's rings begin at index 0.
        self.inflight = Inflight::default();
        self.device.stopped();
        stopped
    }

    /// Stops the vrings until the machine is resumed.
    fn pause(&mut self, setup: &DriverSetup) -> Result<()> {
        let stopped = self.stop_vrings(setup);
        self.device.vrings_paused();
        stopped
    }

    fn stop_vrings(&mut self, setup: &DriverSetup) -> Result<()> {
        let stopped = match &self.backend {
            Some(backend) if self.started => vrings::stop(backend, setup),
            _ => Ok(()),
        };
        if stopped.is_err() {
            // A backend that does not stop them loses its connection before anybody is notified that the vrings are
            // stopped.
            self.drop_backend();
        }
        self.started = false;
        stopped
    }

    fn drop_backend(&mut self) {
        self.backend = None;
        self.started = false;
        self.device.set_socket(None);
    }

    /// Ends the connection because of `fault`.
    fn lose(&mut self, fault: Fault) {
        self.drop_backend();
        if !matches!(fault, Fault::Closed) {
            self.device.report_fault(fault);
        }
    }

    fn set_backend(&mut self, backend: Backend) {
        let socket: Option<UnixStream> = backend.connection.try_clone_socket().ok();
        if self.device.set_socket(socket) {
            self.backend = Some(backend);
        }
    }

    fn read_channel(&mut self, channel: &mut Option<BackendChannel>) {
        let changed = channel.as_mut().map(BackendChannel::read);
        let result = match changed {
            Some(Ok(true)) => self.refresh_config(),
            Some(Ok(false)) | None => Ok(()),
            Some(Err(fault)) => {
                *channel = None;
                return match fault {
                    Fault::Closed => {}
                    fault => self.device.report_fault(fault),
                };
            }
        };
        if let Err(fault) = result {
            self.lose(fault);
        }
    }

    /// Reads the backend's configuration space again, which has changed.
    fn refresh_config(&self) -> Result<()> {
        let Some(backend) = &self.backend else {
            return Ok(());
        };
        backend.connection.set_deadline(STEP_TIMEOUT);
        let config = backend.config(self.device.device_type())?;
        if let Err(fault) = self.device.update_config(config) {
            self.device.report_fault(fault);
        }
        Ok(())
    }

    /// Tries to connect until there is a backend. Returns `false` when the device was removed.
    fn reconnect(&mut self) -> bool {
        let mut pause = FIRST_PAUSE;
        let (mut last, mut reported) = (String::new(), String::new());
        while !self.device.is_closed() {
            match self.connect() {
                Ok(()) => return !self.device.is_closed(),
                // The backend is not started yet, or is just starting.
                Err(Fault::Missing | Fault::NobodyListens) => last.clear(),
                Err(fault) => {
                    // A fault is reported when it comes twice: a backend that is just ending can cause one.
                    let reason = fault.to_string();
                    if reason == last && reason != reported {
                        self.device.report_fault(fault);
                        reported.clone_from(&reason);
                    }
                    last = reason;
                }
            }
            self.wait(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        false
    }

    /// Waits for `time`, or until the device is removed. Meanwhile it does the work that needs no backend.
    fn wait(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            self.device.clear_woken();
            self.work_without_backend();
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.device.is_closed() {
                return;
            }
            let timeout = Timespec::try_from(left).ok();
            let mut fds = [PollFd::from_borrowed_fd(self.device.woken(), PollFlags::IN)];
            // If poll fails, the loop ends when the time is over.
            let _ = poll(&mut fds, timeout.as_ref());
        }
    }

    fn work_without_backend(&mut self) {
        while let Some(work) = self.device.next_work_without_backend() {
            self.work(work);
        }
    }

    /// Connects, and gives the backend everything the former one had.
    fn connect(&mut self) -> Result<()> {
        let device = self.device.clone();
        let backend = device.establish()?;
        let config = backend.config(device.device_type())?;
        self.check_successor(&backend)?;
        self.set_backend(backend);
        let restored = self.restore(config);
        if restored.is_err() {
            self.drop_backend();
        }
        restored
    }

    fn restore(&mut self, config: Option<Vec<u8>>) -> Result<()> {
        let Some(backend) = &self.backend else {
            return Ok(());
        };
        let setup = self.device.setup_to_start();
        if backend.has(VhostUserProtocolFeatures::CONFIG) {
            for (offset, data) in self.device.written_config() {
                backend.connection.set_config(offset, &data)?;
            }
        }
        if let Some(setup) = setup {
            self.start(&setup, Start::Resumed)?;
        }
        self.device.update_config(config)
    }

    /// Checks that a backend offers what the driver and the former backend agreed on.
    fn check_successor(&self, backend: &Backend) -> Result<()> {
        let device = &self.device;
        let lost = device.features() & !(backend.guest_features() | device.local_features());
        if lost != 0 {
            return Err(Fault::LostFeatures(lost));
        }
        let keeps_records = backend.has(VhostUserProtocolFeatures::INFLIGHT_SHMFD);
        if self.inflight.is_recorded_by_backend() && !keeps_records {
            return Err(Fault::Lacks("notes on requests in flight (INFLIGHT_SHMFD)"));
        }
        let queues = Some(device.queues());
        device_type::queue_count(device.device_type(), queues, backend.queues).map(|_| ())
    }
}
