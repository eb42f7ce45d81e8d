//! The loop: connections come, ask, and close.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bulkhead_net_protocol::{Channel, Packet, Refusal, RefusalKind, Reply, Request, decode};
use bulkhead_process::listen::{self, AcceptPause};
use bulkhead_process::signals::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::connection::{Closing, Next, peek};
use crate::host::Host;
use crate::lease::{Lease, refusal};
use crate::listen::Listener;
use crate::reclaim::{Reclaim, Returned};

/// How many connections there can be, and how many of one user. A guest has one for each card and one that is its hold.
const MOST: usize = 1024;
const MOST_OF_ONE_USER: usize = 256;
/// How many devices may be waiting to be removed before more can be had.
const MOST_RETURNED: usize = 1024;
/// How many files all of that takes.
pub(crate) const FILES: u64 = 4096;

/// How long an idle helper stays that is to end when idle: a client whose process has died is started again meanwhile.
const LINGER: Duration = Duration::from_secs(1);

/// Clients and what they have.
#[derive(Debug)]
pub(crate) struct Server {
    clients: Vec<Client>,
    pause: AcceptPause,
    /// There is none before clients are served.
    pub(crate) reclaim: Option<Reclaim>,
    pub(crate) closing: Closing,
    /// Whether to end once nobody needs this helper any more.
    exit_idle: bool,
    /// Whether anybody has needed it yet.
    needed_yet: bool,
    /// When it is to end, if nobody needs it before.
    end: Option<Instant>,
    /// Whoever gave the last hold back was told that it ends.
    ends: bool,
}

#[derive(Debug)]
struct Client {
    channel: Channel,
    user: u32,
    lease: Option<Lease>,
    /// Whether the helper is to stay for it, without a lease.
    holds: bool,
    /// Whether it has given its hold back and waits for the answer.
    releases: bool,
}

impl Client {
    fn new(socket: OwnedFd, user: u32) -> Self {
        Client {
            channel: Channel::new(socket),
            user,
            lease: None,
            holds: false,
            releases: false,
        }
    }

    fn needs_helper(&self) -> bool {
        self.holds || self.lease.is_some()
    }
}

/// What a client's readiness has come to.
enum Outcome {
    Stay,
    Gone,
}

impl Server {
    pub(crate) fn new(exit_idle: bool) -> Self {
        Server {
            clients: Vec::new(),
            pause: AcceptPause::default(),
            reclaim: None,
            closing: Closing::default(),
            exit_idle,
            needed_yet: false,
            end: None,
            ends: false,
        }
    }

    /// Takes the connection of whoever started this helper. It is a hold from the start: if that process is killed
    /// before it has said anything, the helper has been needed and is not any more.
    pub(crate) fn first_client(&mut self, socket: OwnedFd) {
        let user = rustix::process::getuid().as_raw();
        self.clients.push(Client {
            holds: true,
            ..Client::new(socket, user)
        });
        self.needed_yet = true;
    }

    /// Serves until a signal, or until it was idle for a while if that is wanted.
    pub(crate) fn run(
        &mut self,
        listener: &Listener,
        signals: &SignalFd,
        host: &mut Host,
    ) -> Result<()> {
        loop {
            self.look_at_the_clock();
            self.look_after(host);
            let ready = self.wait(listener, signals, host)?;
            let over = self.end.is_some_and(|end| end <= Instant::now());
            if ready.signal {
                return Ok(());
            }
            if over && !ready.listener {
                // Guests of a helper that was killed, which nobody holds this one for, and clients that cannot be
                // accepted.
                if !host.has_open_ports() && self.pause.until().is_none() {
                    return Ok(());
                }
                self.end = Some(Instant::now() + LINGER);
            }
            // From the end, so that positions stay what they were.
            for position in ready.dhcp.into_iter().rev() {
                report_dead(host, position);
            }
            for (position, has_closed) in self.one_of_each_user(ready.clients).into_iter().rev() {
                if has_closed || matches!(self.attend(position, host), Outcome::Gone) {
                    let client = self.clients.swap_remove(position);
                    self.release(client, host);
                }
            }
            // After the others: whoever has ended before is not one that needs the helper.
            self.answer_releases(host);
            if self.ends {
                return Ok(());
            }
            if ready.listener {
                self.welcome_all(listener);
            }
        }
    }

    /// Takes everything back. What is returned is to be closed when everything is undone: somebody may be waiting for
    /// that.
    pub(crate) fn close(mut self, host: &mut Host) -> Vec<OwnedFd> {
        let mut waiting = Vec::new();
        for client in std::mem::take(&mut self.clients) {
            if client.lease.is_some() {
                self.release(client, host);
            } else {
                waiting.push(client.channel.into());
            }
        }
        if let Some(reclaim) = self.reclaim {
            reclaim.finish();
        }
        self.closing.leave();
        waiting
    }

    /// Takes back what a client had, and closes its connection.
    fn release(&self, client: Client, host: &mut Host) {
        match (client.lease, &self.reclaim) {
            (Some(lease), Some(reclaim)) => reclaim.queue(Returned {
                index: lease.end(host),
                client: Some((client.channel, client.user)),
            }),
            _ => self.closing.close(client.channel, client.user),
        }
    }

    /// Those that have closed their connection, and of the others one for each user, the first; the rest are in the
    /// next rounds. So who asks for much waits for himself.
    fn one_of_each_user(&self, ready: Vec<(usize, bool)>) -> Vec<(usize, bool)> {
        let mut users = BTreeSet::new();
        let user = |position: usize| self.clients.get(position).map(|client| client.user);
        ready
            .into_iter()
            .filter(|&(position, has_closed)| has_closed || users.insert(user(position)))
            .collect()
    }

    fn look_after(&self, host: &mut Host) {
        let ended = host.process_notifications();
        if let Some(reclaim) = &self.reclaim {
            for index in ended {
                reclaim.queue(Returned {
                    index,
                    client: None,
                });
            }
        }
    }

    fn look_at_the_clock(&mut self) {
        if self.clients.iter().any(Client::needs_helper) || !self.exit_idle || !self.needed_yet {
            self.end = None;
        } else if self.end.is_none() {
            self.end = Some(Instant::now() + LINGER);
        }
    }

    fn wait(&self, listener: &Listener, signals: &SignalFd, host: &Host) -> Result<Ready> {
        let pause = self.pause.until();
        let connections = match pause {
            Some(_) => PollFlags::empty(),
            None => PollFlags::IN,
        };
        let mut fds = vec![
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(listener, connections),
        ];
        let reports = host.notification_sockets();
        fds.extend(
            reports
                .iter()
                .map(|&fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );
        fds.extend(
            host.dhcp
                .iter()
                .map(|d| PollFd::from_borrowed_fd(d.watched(), PollFlags::IN)),
        );
        fds.extend(
            self.clients
                .iter()
                .map(|c| PollFd::from_borrowed_fd(c.channel.as_fd(), PollFlags::IN)),
        );
        let times = [self.end, host.repair_due(), pause];
        let next = times.into_iter().flatten().min();
        let left = next.map(|next| next.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).context("poll"),
        }
        let mut events = fds.iter().map(PollFd::revents);
        let mut next = || !events.next().unwrap_or(PollFlags::empty()).is_empty();
        let (signal, listener) = (next(), next());
        for _ in reports {
            next();
        }
        let dhcp = (0..host.dhcp.len()).filter(|_| next()).collect();
        let clients = events
            .enumerate()
            .filter(|(_, event)| !event.is_empty())
            .map(|(position, event)| (position, event.contains(PollFlags::HUP)))
            .collect();
        Ok(Ready {
            signal,
            listener,
            dhcp,
            clients,
        })
    }

    /// Accepts all that wait, as many as can wait: who connects in between waits for one such round, whatever others
    /// do.
    fn welcome_all(&mut self, listener: &Listener) {
        for _ in 0..listen::BACKLOG {
            match listener.accept() {
                Ok((socket, user)) => self.welcome(socket, user),
                Err(error) => {
                    self.pause.note("a client", &error);
                    return;
                }
            }
        }
    }

    fn welcome(&mut self, socket: OwnedFd, user: u32) {
        let client = Client::new(socket, user);
        let of_user = self.clients.iter().filter(|c| c.user == user).count();
        let of_user = of_user + self.closing.of(user);
        let of_user = user != 0 && of_user >= MOST_OF_ONE_USER;
        let returned = self.reclaim.as_ref().map_or(0, Reclaim::pending);
        if self.clients.len() >= MOST || returned >= MOST_RETURNED || of_user {
            let why = refusal(
                RefusalKind::Limit,
                "bulkhead-net-helper has as many clients as it takes".into(),
            );
            let _ = client.channel.send(&Reply::Refused(why), &[]);
            self.closing.close(client.channel, user);
            return;
        }
        self.clients.push(client);
        // It may need the helper, and has had no time to say so.
        self.end = self.end.map(|_| Instant::now() + LINGER);
    }

    fn attend(&mut self, position: usize, host: &mut Host) -> Outcome {
        let Some(client) = self.clients.get(position) else {
            return Outcome::Stay;
        };
        match peek(&client.channel) {
            Next::Message => {}
            Next::Nothing => return Outcome::Stay,
            Next::End => return Outcome::Gone,
            Next::Files => {
                let why = "a request comes without files".into();
                let why = refusal(RefusalKind::Invalid, why);
                let _ = client.channel.send(&Reply::Refused(why), &[]);
                return Outcome::Gone;
            }
        }
        let packet = match client.channel.receive() {
            Ok(Some(packet)) => packet,
            Err(e) if would_block(&e) => return Outcome::Stay,
            Ok(None) | Err(_) => return Outcome::Gone,
        };
        match self.answer(position, &packet, host) {
            Ok(()) => Outcome::Stay,
            Err(why) => {
                // One mistake is told; there is no second try on a connection.
                if let Some(client) = self.clients.get(position) {
                    let _ = client.channel.send(&Reply::Refused(why), &[]);
                }
                Outcome::Gone
            }
        }
    }

    fn answer(&mut self, position: usize, packet: &Packet, host: &mut Host) -> Result<(), Refusal> {
        let invalid = |why: String| refusal(RefusalKind::Invalid, why);
        let request = decode::<Request>(&packet.bytes).map_err(|e| invalid(e.to_string()))?;
        if !packet.files.is_empty() {
            return Err(invalid("a request comes without files".into()));
        }
        let request = match request {
            Request::Tap(request) => request,
            Request::Hold => return self.hold(position),
            Request::Release => return self.release_hold(position),
            _ => return Err(invalid("unknown request".into())),
        };
        if self.clients.get(position).is_none_or(Client::needs_helper) {
            return Err(invalid(
                "a connection is the lease of one TAP device".into(),
            ));
        }
        let _removing_nothing = self.reclaim.as_ref().map(Reclaim::pause);
        let grant = Lease::grant(
            &request,
            host,
            self.clients.iter().filter_map(|c| c.lease.as_ref()),
        )?;
        let Some(client) = self.clients.get_mut(position) else {
            return Ok(());
        };
        // From here on the device goes with the connection, also when the client is not there to hear of it.
        client.lease = Some(grant.lease);
        self.needed_yet = true;
        let files: Vec<_> = grant.queues.iter().map(AsFd::as_fd).collect();
        client
            .channel
            .send(&Reply::Tap(grant.info), &files)
            .map_err(|e| refusal(RefusalKind::System, e.to_string()))
    }

    fn hold(&mut self, position: usize) -> Result<(), Refusal> {
        let Some(client) = self.clients.get_mut(position) else {
            return Ok(());
        };
        if client.lease.is_some() {
            return Err(refusal(
                RefusalKind::Invalid,
                "a connection is a lease or a hold".into(),
            ));
        }
        client.holds = true;
        self.needed_yet = true;
        reply(client, &Reply::Held)
    }

    fn release_hold(&mut self, position: usize) -> Result<(), Refusal> {
        let Some(client) = self.clients.get_mut(position) else {
            return Ok(());
        };
        if !client.holds || client.releases {
            return Err(refusal(
                RefusalKind::Invalid,
                "this connection is no hold".into(),
            ));
        }
        client.releases = true;
        Ok(())
    }

    /// Who gives the last hold back learns that the helper ends, and waits for that by its connection.
    fn answer_releases(&mut self, host: &mut Host) {
        for position in 0..self.clients.len() {
            let Some(client) = self.clients.get_mut(position) else {
                return;
            };
            if !std::mem::take(&mut client.releases) {
                continue;
            }
            client.holds = false;
            let needed = self.clients.iter().any(Client::needs_helper) || host.has_open_ports();
            self.ends = self.exit_idle && !needed;
            if let Some(client) = self.clients.get(position) {
                // One that has gone without the answer needs none.
                let _ = reply(client, &Reply::Released { ends: self.ends });
            }
        }
    }
}

fn reply(client: &Client, reply: &Reply) -> Result<(), Refusal> {
    let sent = client.channel.send(reply, &[]);
    sent.map_err(|e| refusal(RefusalKind::System, e.to_string()))
}

struct Ready {
    signal: bool,
    listener: bool,
    dhcp: Vec<usize>,
    /// Which, and whether the other end has closed.
    clients: Vec<(usize, bool)>,
}

fn report_dead(host: &mut Host, position: usize) {
    let Some(dhcp) = host.dhcp.get_mut(position) else {
        return;
    };
    if dhcp.is_dead() {
        bulkhead_process::warn(&format!(
            "network {}: all that could start dnsmasq was killed; there is no DHCP until a restart",
            dhcp.network()
        ));
        let _ = host.dhcp.swap_remove(position).stop();
    }
}

fn would_block(error: &bulkhead_net_protocol::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    source.is_some_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
}
