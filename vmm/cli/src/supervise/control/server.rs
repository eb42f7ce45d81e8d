//! The threads of `control.sock`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bulkhead_process::listen::{self, AcceptPause};
use crossbeam_channel::{RecvTimeoutError, Sender, bounded, unbounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde_json::Value;

use super::{Order, Request, Response, SOCKET, Subscriber, responder};
use crate::supervise::api;
use crate::supervise::console::Hub;
use crate::supervise::event::Event;
use crate::supervise::state::{Reason, RunState};

/// How many clients are served at a time.
const CLIENTS: usize = 64;
/// How long a client may take for its request.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest request.
const LONGEST: u64 = 1 << 20;
/// How often it is looked whether a client that waits for changes is still there.
const LOOK: Duration = Duration::from_secs(1);
/// The pause while no client can be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// What the threads share.
#[derive(Clone)]
struct Shared {
    events: Sender<Event>,
    console: Option<Hub>,
    api: PathBuf,
    clients: Arc<AtomicUsize>,
}

/// Listens in the guest's folder, and serves its clients until the process ends.
pub(in crate::supervise) fn serve(
    folder: &Path,
    events: Sender<Event>,
    console: Option<Hub>,
) -> anyhow::Result<listen::SocketFile> {
    let (listener, file) = listen::listen(&folder.join(SOCKET))?.into_parts();
    let shared = Shared {
        events,
        console,
        api: folder.join("api.sock"),
        clients: Arc::default(),
    };
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || accept_all(&listener.into(), &shared))?;
    Ok(file)
}

fn accept_all(listener: &UnixListener, shared: &Shared) {
    let mut pause = AcceptPause::default();
    loop {
        let mut fds = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
        let _ = poll(&mut fds, None);
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) => {
                if pause.note("a client of the supervisor", &error) {
                    std::thread::sleep(PAUSE);
                }
                continue;
            }
        };
        if shared.clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS {
            shared.clients.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let counted = shared.clone();
        let started = std::thread::Builder::new()
            .name("client".into())
            .spawn(move || {
                // A client that is gone needs no answer.
                let _ = serve_client(client, &counted);
                counted.clients.fetch_sub(1, Ordering::Relaxed);
            });
        if started.is_err() {
            shared.clients.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn serve_client(client: UnixStream, shared: &Shared) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    let mut reader = BufReader::with_capacity(1, &client).take(LONGEST);
    reader.read_line(&mut line)?;
    let request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => {
            let message = format!("this is no request: {error}");
            return write_line(&client, &Response::Error(message));
        }
    };
    match request {
        Request::Console { force, terminal } => shared.attach(client, force, &terminal),
        Request::Events => shared.send_changes(&client),
        Request::State => shared.order(&client, Order::State),
        Request::SetMetadata { change } => shared.order(&client, Order::SetMetadata(change)),
        Request::Destroy { graceful } => shared.order(&client, Order::Destroy { graceful }),
        request => {
            let response = match shared.ask_monitor(&request) {
                Ok(()) => Response::Ok(Value::Null),
                Err(error) => Response::Error(format!("{error:#}")),
            };
            write_line(&client, &response)
        }
    }
}

impl Shared {
    /// Has the main thread carry out an order, and writes its response.
    fn order(&self, client: &UnixStream, order: Order) -> io::Result<()> {
        let (responder, pending) = responder();
        let lost = |_| io::Error::other("the supervisor ends");
        self.events
            .send(Event::Order(order, responder))
            .map_err(|_| io::Error::other("the supervisor ends"))?;
        let response = pending.response.recv().map_err(lost)?;
        write_line(client, &response)
    }

    /// Carries out an order whose response the client does not get.
    fn order_silently(&self, order: Order) {
        let (responder, pending) = responder();
        if self.events.send(Event::Order(order, responder)).is_ok() {
            let _ = pending.response.recv();
        }
    }

    /// Has the monitor do what is requested, and the main thread note it.
    fn ask_monitor(&self, request: &Request) -> anyhow::Result<()> {
        let change = match request {
            Request::Suspend => {
                api::put(&self.api, "vm.pause")?;
                (RunState::Paused, Reason::User)
            }
            Request::Resume => {
                api::put(&self.api, "vm.resume")?;
                (RunState::Running, Reason::Unpaused)
            }
            Request::Shutdown => {
                api::put(&self.api, "vm.power-button")?;
                return Ok(());
            }
            Request::Reboot => {
                self.order_silently(Order::RestartWhenOff);
                return api::put(&self.api, "vm.power-button")
                    .inspect_err(|_| self.order_silently(Order::StayOff));
            }
            _ => {
                api::put(&self.api, "vm.reboot")?;
                return Ok(());
            }
        };
        let _ = self.events.send(Event::Changed(change.0, change.1));
        // The change is seen by whoever asks after this.
        self.order_silently(Order::State);
        Ok(())
    }

    fn attach(&self, client: UnixStream, force: bool, terminal: &str) -> io::Result<()> {
        let Some(hub) = &self.console else {
            let message = "the guest's console is on the terminal of 'bulkhead run'";
            return write_line(&client, &Response::Error(message.to_owned()));
        };
        match hub.reserve(force, terminal) {
            Err(holder) => {
                let message = format!(
                    "{holder} has the console of this guest: 'bulkhead console --force' takes it"
                );
                write_line(&client, &Response::Error(message))
            }
            Ok(seat) => {
                write_line(&client, &Response::Ok(Value::Null))?;
                client.set_nonblocking(true)?;
                hub.attach(seat, OwnedFd::from(client));
                Ok(())
            }
        }
    }

    fn send_changes(&self, client: &UnixStream) -> io::Result<()> {
        let (sender, changes) = unbounded();
        let (_until_return, written) = bounded(0);
        self.order_silently(Order::Subscribe(Subscriber {
            changes: sender,
            written,
        }));
        write_line(client, &Response::Ok(Value::Null))?;
        loop {
            match changes.recv_timeout(LOOK) {
                Ok(change) => write_line(client, &change)?,
                Err(RecvTimeoutError::Timeout) if !is_gone(client) => {}
                Err(_) => return Ok(()),
            }
        }
    }
}

/// Whether the client has closed the connection.
fn is_gone(client: &UnixStream) -> bool {
    let mut fds = [PollFd::new(client, PollFlags::empty())];
    let now = Timespec::default();
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

fn write_line(mut client: &UnixStream, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    client.write_all(&line)
}
