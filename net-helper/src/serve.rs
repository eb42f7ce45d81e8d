//! The main loop: it accepts connections, answers requests, and takes TAP devices back when connections close.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bulkhead_net_protocol::{
    AddressRequest, Channel, Packet, Refusal, RefusalKind, Reply, Request, decode,
};
use bulkhead_process::listen::{self, AcceptPause};
use bulkhead_process::signals::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::connection::{Closing, Next, peek};
use crate::dhcp;
use crate::host::Host;
use crate::lease::{Lease, refusal};
use crate::listen::Listener;
use crate::reclaim::{Reclaim, Returned};

/// The limits of connections, in all and of one user. A guest has one for each network interface, and one that is its
/// hold.
const MAX_CLIENTS: usize = 1024;
const MAX_CLIENTS_OF_USER: usize = 256;
/// While more devices than this wait for their removal, no client is accepted.
const MAX_RETURNED: usize = 1024;
/// The open files that these limits require.
pub(crate) const MAX_OPEN_FILES: u64 = 4096;

/// How long a helper with --exit-idle stays when it is idle, so that a backend that has died can be started again
/// meanwhile.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// The clients and their leases.
#[derive(Debug)]
pub(crate) struct Server {
    clients: Vec<Client>,
    pause: AcceptPause,
    /// `None` until clients are served.
    pub(crate) reclaim: Option<Reclaim>,
    pub(crate) closing: Closing,
    /// Whether to end when no client needs the helper any more.
    exit_idle: bool,
    /// Whether a client has needed the helper yet.
    was_needed: bool,
    /// When an idle helper ends, unless a client needs it before.
    idle_deadline: Option<Instant>,
    /// The last hold has been released, and its client has the reply that the helper ends.
    is_ending: bool,
}

#[derive(Debug)]
struct Client {
    channel: Channel,
    user: u32,
    lease: Option<Lease>,
    /// Whether the connection is a hold.
    holds: bool,
    /// Whether the client has released its hold and waits for the reply.
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

/// What becomes of a client after its request.
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
            was_needed: false,
            idle_deadline: None,
            is_ending: false,
        }
    }

    /// Adds the connection of the process that has started this helper. It is a hold from the start, so that the helper
    /// ends if that process is killed before it sends anything.
    pub(crate) fn add_first_client(&mut self, socket: OwnedFd) {
        let user = rustix::process::getuid().as_raw();
        self.clients.push(Client {
            holds: true,
            ..Client::new(socket, user)
        });
        self.was_needed = true;
    }

    /// Serves until a signal, or with --exit-idle until the helper is idle.
    pub(crate) fn run(
        &mut self,
        listener: &Listener,
        signals: &SignalFd,
        host: &mut Host,
    ) -> Result<()> {
        loop {
            self.update_idle_deadline();
            self.process_notifications(host);
            let ready = self.wait(listener, signals, host)?;
            let is_idle = self.idle_deadline.is_some_and(|end| end <= Instant::now());
            if ready.signal {
                return Ok(());
            }
            if is_idle && !ready.listener {
                // Stay for guests of a previous run, which have no lease, and for clients that could not be accepted.
                if !host.has_open_ports() && self.pause.until().is_none() {
                    return Ok(());
                }
                self.idle_deadline = Some(Instant::now() + IDLE_TIMEOUT);
            }
            // From the last to the first, since `swap_remove` changes later positions.
            for position in ready.dhcp.into_iter().rev() {
                warn_if_dead(host, position);
            }
            for (position, has_closed) in self.one_of_each_user(ready.clients).into_iter().rev() {
                if has_closed || matches!(self.receive_request(position, host), Outcome::Gone) {
                    let client = self.clients.swap_remove(position);
                    self.disconnect(client, host);
                }
            }
            // After all other events, so that clients that have disconnected do not count as needing the helper.
            self.answer_releases(host);
            if self.is_ending {
                return Ok(());
            }
            if ready.listener {
                self.accept_all(listener);
            }
        }
    }

    /// Ends all leases. The caller closes the connections that are returned when everything is removed, which clients
    /// may wait for.
    pub(crate) fn close(mut self, host: &mut Host) -> Vec<OwnedFd> {
        let mut waiting = Vec::new();
        for client in std::mem::take(&mut self.clients) {
            if client.lease.is_some() {
                self.disconnect(client, host);
            } else {
                waiting.push(client.channel.into());
            }
        }
        if let Some(reclaim) = self.reclaim {
            reclaim.finish();
        }
        self.closing.leave_to_exit();
        waiting
    }

    /// Ends a client's lease, and closes its connection.
    fn disconnect(&self, client: Client, host: &mut Host) {
        match (client.lease, &self.reclaim) {
            (Some(lease), Some(reclaim)) => reclaim.queue(Returned {
                index: lease.end(host),
                client: Some((client.channel, client.user)),
            }),
            _ => self.closing.close(client.channel, client.user),
        }
    }

    /// The clients to serve in this round: those that have closed their connection, and of the others the first of each
    /// user. So a user with many requests delays only his own.
    fn one_of_each_user(&self, ready: Vec<(usize, bool)>) -> Vec<(usize, bool)> {
        let mut users = BTreeSet::new();
        let user = |position: usize| self.clients.get(position).map(|client| client.user);
        ready
            .into_iter()
            .filter(|&(position, has_closed)| has_closed || users.insert(user(position)))
            .collect()
    }

    fn process_notifications(&self, host: &mut Host) {
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

    fn update_idle_deadline(&mut self) {
        if self.clients.iter().any(Client::needs_helper) || !self.exit_idle || !self.was_needed {
            self.idle_deadline = None;
        } else if self.idle_deadline.is_none() {
            self.idle_deadline = Some(Instant::now() + IDLE_TIMEOUT);
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
        let times = [self.idle_deadline, host.repair_due(), pause];
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

    /// Accepts all connections that wait, at most as many as the backlog has room for. So a client waits for one such
    /// round, however many others connect.
    fn accept_all(&mut self, listener: &Listener) {
        for _ in 0..listen::BACKLOG {
            match listener.accept() {
                Ok((socket, user)) => self.add_client(socket, user),
                Err(error) => {
                    self.pause.note("a client", &error);
                    return;
                }
            }
        }
    }

    fn add_client(&mut self, socket: OwnedFd, user: u32) {
        let client = Client::new(socket, user);
        let of_user = self.clients.iter().filter(|c| c.user == user).count();
        let of_user = of_user + self.closing.of_user(user);
        let of_user = user != 0 && of_user >= MAX_CLIENTS_OF_USER;
        let returned = self.reclaim.as_ref().map_or(0, Reclaim::pending);
        if self.clients.len() >= MAX_CLIENTS || returned >= MAX_RETURNED || of_user {
            let why = refusal(
                RefusalKind::Limit,
                "bulkhead-net-helper has as many clients as it takes".into(),
            );
            let _ = client.channel.send(&Reply::Refused(why), &[]);
            self.closing.close(client.channel, user);
            return;
        }
        self.clients.push(client);
        // The client may need the helper and has not sent its request yet.
        self.idle_deadline = self.idle_deadline.map(|_| Instant::now() + IDLE_TIMEOUT);
    }

    fn receive_request(&mut self, position: usize, host: &mut Host) -> Outcome {
        let Some(client) = self.clients.get(position) else {
            return Outcome::Stay;
        };
        match peek(&client.channel) {
            Next::Message => {}
            Next::Empty => return Outcome::Stay,
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
                // After a request that is refused, the connection is closed.
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
            Request::Addresses(request) => return self.addresses(position, &request, host),
            _ => return Err(invalid("unknown request".into())),
        };
        if self.clients.get(position).is_none_or(Client::needs_helper) {
            return Err(invalid(
                "a connection is the lease of one TAP device".into(),
            ));
        }
        let _no_removals = self.reclaim.as_ref().map(Reclaim::pause);
        let grant = Lease::grant(
            &request,
            host,
            self.clients.iter().filter_map(|c| c.lease.as_ref()),
        )?;
        let Some(client) = self.clients.get_mut(position) else {
            return Ok(());
        };
        // From here on the device is removed when the connection closes, even if the client does not receive the reply.
        client.lease = Some(grant.lease);
        self.was_needed = true;
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
        self.was_needed = true;
        reply(client, &Reply::Held)
    }

    fn addresses(
        &self,
        position: usize,
        request: &AddressRequest,
        host: &Host,
    ) -> Result<(), Refusal> {
        let Some(client) = self.clients.get(position) else {
            return Ok(());
        };
        if client.needs_helper() {
            let why = "this connection is a lease or a hold".into();
            return Err(refusal(RefusalKind::Invalid, why));
        }
        let network = &host.network(&request.network)?.network;
        let found = dhcp::addresses(network, request.mac, host.state.path());
        let found = found.map_err(|e| refusal(RefusalKind::System, format!("{e:#}")))?;
        reply(client, &Reply::Addresses(found))
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

    /// Replies to clients that release their hold. With the last one the helper ends, and the client waits until its
    /// connection closes.
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
            self.is_ending = self.exit_idle && !needed;
            if let Some(client) = self.clients.get(position) {
                // An error means that the client has closed the connection.
                let _ = reply(
                    client,
                    &Reply::Released {
                        ends: self.is_ending,
                    },
                );
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
    /// The position of each ready client, and whether it has closed its end.
    clients: Vec<(usize, bool)>,
}

fn warn_if_dead(host: &mut Host, position: usize) {
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
