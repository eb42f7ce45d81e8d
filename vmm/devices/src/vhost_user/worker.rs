//! The thread that does a device's dealings with its backends, of which there may be several, one after the other: it sleeps while
//! there is nothing to do, and looks for another backend when one died. Only it waits for a backend.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::backend_channel::BackendChannel;
use super::connection::STEP;
use super::error::{Fault, Result};
use super::handshake::Link;
use super::session::{Session, Work};
use super::unanswered::Unanswered;
use super::vrings::{self, Active, Notes, Start};
use super::{BackendEvent, TYPE_NET, device_type};

/// How long to wait between attempts: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// A backend that was there for less is one that keeps dying: it is waited for longer each time.
const LASTING: Duration = Duration::from_secs(5);

/// How often requests are looked at while they are answered: a ring of 128 is not used up in that time.
const FOLLOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000,
};

pub(super) fn start(
    session: &Arc<Session>,
    enter: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let link = session.take_first_link();
    let mut worker = Worker {
        session: session.clone(),
        link: None,
        started: false,
        notes: Notes::default(),
    };
    thread::Builder::new()
        .name("vhost-user".into())
        .spawn(move || {
            enter();
            if let Some(link) = link {
                worker.take_link(link);
            }
            worker.run();
        })?;
    Ok(())
}

struct Worker {
    session: Arc<Session>,
    /// The backend, while there is one.
    link: Option<Link>,
    /// It has the driver's queues.
    started: bool,
    /// Kept from one backend to the next.
    notes: Notes,
}

impl Worker {
    fn run(&mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let since = Instant::now();
            self.serve();
            if self.session.is_closed() {
                return;
            }
            self.session.report(BackendEvent::Lost);
            if since.elapsed() < LASTING {
                self.wait(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            } else {
                pause = FIRST_PAUSE;
            }
            if !self.reconnect() {
                return;
            }
            self.session.report(BackendEvent::Back);
        }
    }

    /// Does what there is to do until the backend is gone, or the device.
    fn serve(&mut self) {
        let mut channel = self.link.as_mut().and_then(|link| link.channel.take());
        // Whether requests are being answered just now.
        let mut following = false;
        loop {
            self.session.clear_woken();
            while let Some(work) = self.session.next_work() {
                self.work(work);
                if self.session.is_closed() {
                    return;
                }
            }
            let Some(link) = &self.link else { return };
            if self.session.is_closed() {
                return;
            }
            let woken = PollFd::from_borrowed_fd(self.session.woken(), PollFlags::IN);
            // Replies are read when a request was made: here it is about the end only.
            let mut fds = vec![woken, PollFd::new(&link.connection, PollFlags::RDHUP)];
            let message_at = channel.as_ref().map(|channel| {
                fds.push(PollFd::new(channel, PollFlags::IN));
                fds.len() - 1
            });
            let interrupts = self.notes.unanswered.as_ref().map(Unanswered::interrupts);
            fds.extend(interrupts.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            match poll(&mut fds, following.then_some(&FOLLOW)) {
                Ok(_) | Err(Errno::INTR) => {}
                // Without poll there is no way to go on watching.
                Err(_) => return self.lose(Fault::Closed),
            }
            let happened =
                |number: usize| fds.get(number).is_some_and(|fd| !fd.revents().is_empty());
            let (over, message) = (happened(1), message_at.is_some_and(happened));
            drop(fds);
            if let Some(unanswered) = &mut self.notes.unanswered {
                following = unanswered.pass_on(self.session.memory());
            }
            if over {
                return self.lose(Fault::Closed);
            }
            if message {
                self.listen(&mut channel);
            }
        }
    }

    fn work(&mut self, work: Work) {
        let result = match (work, &self.link) {
            (Work::Stop(active), _) => self.stop(&active),
            (Work::Kick(kick), _) => {
                signal(&kick);
                Ok(())
            }
            // A backend that comes is handed everything.
            (_, None) => Ok(()),
            (Work::Start(active), Some(_)) => self.start(&active, Start::Fresh),
            (Work::Call(queue), Some(link)) => {
                let told = match &mut self.notes.unanswered {
                    Some(unanswered) => {
                        unanswered.set_call(&queue);
                        Ok(())
                    }
                    None => {
                        link.connection.begin(STEP);
                        let connection = &link.connection;
                        let eventfd = queue.call.eventfd().as_raw_fd();
                        connection
                            .set_vring_call(queue.index, eventfd)
                            .and_then(|()| connection.settle())
                    }
                };
                // The backend may have signalled the former one a moment ago.
                queue.call.signal();
                told
            }
            (Work::Write(offset, data), Some(link))
                if link.has(VhostUserProtocolFeatures::CONFIG) =>
            {
                link.connection.begin(STEP);
                match link.connection.set_config(offset, &data) {
                    Err(Fault::Refused(_)) => {
                        self.session.forget_written_config();
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

    fn start(&mut self, active: &Active, start: Start) -> Result<()> {
        let Some(link) = &self.link else {
            return Ok(());
        };
        let memory = self.session.memory();
        if self.notes.inflight.is_none() {
            let in_any_order = self.answers_in_any_order(link);
            if let Some(unanswered) = &mut self.notes.unanswered {
                if !unanswered.restore(memory) {
                    self.session.needs_reset();
                    self.session.report_fault(Fault::Forgotten);
                    return Ok(());
                }
            } else if in_any_order {
                let unanswered = Unanswered::watch(active).map_err(io::Error::from)?;
                self.notes.unanswered = Some(unanswered);
            }
        }
        // From here on it may have some of them.
        self.started = true;
        let started = vrings::start(link, memory, active, &mut self.notes, start);
        if let (Err(Fault::Refused(_)), Start::Fresh) = (&started, start) {
            // The next backend may take them, but the driver had better know.
            self.session.needs_reset();
        }
        started
    }

    /// Whether only the monitor can know which requests are under way. Of a network device's it need not: they are answered in order.
    fn answers_in_any_order(&self, link: &Link) -> bool {
        self.session.device_type() != TYPE_NET
            && !link.has(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    }

    fn stop(&mut self, active: &Active) -> Result<()> {
        let stopped = match &self.link {
            Some(link) if self.started => vrings::stop(link, active),
            _ => Ok(()),
        };
        if stopped.is_err() {
            // The end of the connection is what takes the queues from it then, and comes before the driver has them back.
            self.drop_link();
        }
        self.started = false;
        // Nothing is in flight any more, and the next driver's rings begin at zero.
        self.notes = Notes::default();
        self.session.stopped();
        stopped
    }

    fn drop_link(&mut self) {
        self.link = None;
        self.started = false;
        self.session.set_socket(None);
    }

    /// Ends the connection.
    fn lose(&mut self, fault: Fault) {
        self.drop_link();
        if !matches!(fault, Fault::Closed) {
            self.session.report_fault(fault);
        }
    }

    fn take_link(&mut self, link: Link) {
        let socket: Option<UnixStream> = link.connection.try_clone_socket().ok();
        if self.session.set_socket(socket) {
            self.link = Some(link);
        }
    }

    fn listen(&mut self, channel: &mut Option<BackendChannel>) {
        let heard = channel.as_mut().map(BackendChannel::read);
        let result = match heard {
            Some(Ok(true)) => self.refresh_config(),
            Some(Ok(false)) | None => Ok(()),
            Some(Err(fault)) => {
                *channel = None;
                return match fault {
                    Fault::Closed => {}
                    fault => self.session.report_fault(fault),
                };
            }
        };
        if let Err(fault) = result {
            self.lose(fault);
        }
    }

    /// The backend says that its configuration is a different one now.
    fn refresh_config(&self) -> Result<()> {
        let Some(link) = &self.link else {
            return Ok(());
        };
        link.connection.begin(STEP);
        let config = link.config(self.session.device_type())?;
        if let Err(fault) = self.session.take_config(config) {
            self.session.report_fault(fault);
        }
        Ok(())
    }

    /// Tries until there is a backend again, or the device is gone (`false`).
    fn reconnect(&mut self) -> bool {
        let mut pause = FIRST_PAUSE;
        let (mut last, mut reported) = (String::new(), String::new());
        while !self.session.is_closed() {
            match self.resume() {
                Ok(()) => return !self.session.is_closed(),
                // It has not been started yet, or is only just starting.
                Err(Fault::Missing | Fault::NobodyListens) => last.clear(),
                Err(fault) => {
                    // Once can happen to a backend that is just going away.
                    let reason = fault.to_string();
                    if reason == last && reason != reported {
                        self.session.report_fault(fault);
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

    /// Waits for so long, or until the device is gone. What needs no backend is done meanwhile.
    fn wait(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            self.session.clear_woken();
            self.work_alone();
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.session.is_closed() {
                return;
            }
            let timeout = Timespec::try_from(left).ok();
            let mut fds = [PollFd::from_borrowed_fd(
                self.session.woken(),
                PollFlags::IN,
            )];
            // When it fails, the time left says so.
            let _ = poll(&mut fds, timeout.as_ref());
        }
    }

    /// Gives back to the driver what no backend has.
    fn work_alone(&mut self) {
        if let Some(active) = self.session.queues_to_stop() {
            // There is nobody who could fail.
            let _ = self.stop(&active);
        }
    }

    /// Gives a backend that came back everything the former one had.
    fn resume(&mut self) -> Result<()> {
        let session = self.session.clone();
        let link = session.establish()?;
        let config = link.config(session.device_type())?;
        self.check_successor(&link)?;
        self.take_link(link);
        let resumed = self.hand_over(config);
        if resumed.is_err() {
            self.drop_link();
        }
        resumed
    }

    fn hand_over(&mut self, config: Option<Vec<u8>>) -> Result<()> {
        let Some(link) = &self.link else {
            return Ok(());
        };
        let active = self.session.queues_to_start();
        if link.has(VhostUserProtocolFeatures::CONFIG) {
            for (offset, data) in self.session.written_config() {
                link.connection.set_config(offset, &data)?;
            }
        }
        if let Some(active) = active {
            self.start(&active, Start::Resumed)?;
        }
        self.session.take_config(config)
    }

    /// Whether a backend that came back can take over from the former one.
    fn check_successor(&self, link: &Link) -> Result<()> {
        let session = &self.session;
        let lost = session.features() & !(link.guest_features() | session.local_features());
        if lost != 0 {
            return Err(Fault::LostFeatures(lost));
        }
        if self.notes.inflight.is_some() && !link.has(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            return Err(Fault::Lacks("notes on requests in flight (INFLIGHT_SHMFD)"));
        }
        let queues = Some(session.queues());
        device_type::queue_count(session.device_type(), queues, link.queues).map(|_| ())
    }
}

/// Signals an eventfd that backends have, too: one of them may have filled it, and made it block.
pub(super) fn signal(eventfd: &EventFd) {
    // One that is full is readable already.
    if matches!(takes_one(eventfd), Ok(true)) {
        let _ = eventfd.write(1);
    }
}

fn takes_one(eventfd: &EventFd) -> io::Result<bool> {
    let epoll = Epoll::new()?;
    let event = EpollEvent::new(EventSet::OUT, 0);
    epoll.ctl(ControlOperation::Add, eventfd.as_raw_fd(), event)?;
    Ok(epoll.wait(0, &mut [EpollEvent::default()])? > 0)
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_CLOEXEC;

    use super::*;

    #[test]
    fn an_eventfd_that_is_full_and_blocks_is_left_alone() {
        let eventfd = EventFd::new(EFD_CLOEXEC).unwrap();
        signal(&eventfd);
        assert_eq!(eventfd.read().unwrap(), 1);
        eventfd.write(u64::MAX - 1).unwrap();
        signal(&eventfd);
        assert_eq!(eventfd.read().unwrap(), u64::MAX - 1);
    }
}
