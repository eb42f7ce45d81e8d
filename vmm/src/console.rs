//! What is on the other side of the guest's serial port: a terminal, a file, a socket or nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, bail};
use bulkhead_devices::Serial;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr,
};

use crate::config::SerialConfig;

/// How much output waits for a reader at most; the oldest is lost first.
const PENDING_MAX: usize = 64 << 10;

/// The serial port's surroundings.
pub(crate) struct Console {
    sink: Arc<Sink>,
    /// Where input comes from, until its end.
    input: Option<OwnedFd>,
    /// Input the guest has not taken yet.
    unfed: VecDeque<u8>,
    listener: Option<(UnixListener, PathBuf)>,
    raw: Option<RawTerminal>,
}

/// What the event loop is to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConsoleEvent {
    /// Input has come.
    Input,
    /// Somebody connects.
    Connection,
    /// Output got stuck.
    Stuck,
    /// Output can go on.
    Unstuck,
}

impl Console {
    /// Opens what `config` names. `None` when there is to be no serial port.
    pub(crate) fn open(config: &SerialConfig) -> anyhow::Result<Option<Self>> {
        let mut console = Self {
            sink: Arc::new(Sink::new()?),
            input: None,
            unfed: VecDeque::new(),
            listener: None,
            raw: None,
        };
        match config {
            SerialConfig::Off => return Ok(None),
            SerialConfig::Null => {}
            SerialConfig::Tty => {
                // A descriptor that is closed is as good as one at its end.
                console.input = io::stdin().as_fd().try_clone_to_owned().ok();
                let output = io::stdout().as_fd().try_clone_to_owned().ok();
                console.sink.lock().target = output;
            }
            SerialConfig::File { file } => {
                let file = File::create(file)
                    .with_context(|| format!("--serial: cannot create {}", file.display()))?;
                console.sink.lock().target = Some(file.into());
            }
            SerialConfig::Socket { socket } => {
                console.listener = Some((listen(socket).context("--serial")?, socket.clone()));
                console.sink.lock().keeps = true;
            }
        }
        Ok(Some(console))
    }

    /// Takes the terminal out of line mode, if input is one and it is ours. Ctrl-C goes on to interrupt.
    pub(crate) fn make_raw(&mut self) {
        self.raw = self.input.as_ref().and_then(RawTerminal::new);
    }

    /// Where the guest's output goes.
    pub(crate) fn writer(&self) -> Box<dyn Write + Send> {
        Box::new(Writer(self.sink.clone()))
    }

    /// The path of the socket, to be removed at the end.
    pub(crate) fn socket(&self) -> Option<&Path> {
        self.listener.as_ref().map(|(_, path)| path.as_path())
    }

    /// Whether there is input the guest has yet to take; more is not read until it has.
    pub(crate) fn is_full(&self) -> bool {
        !self.unfed.is_empty()
    }

    /// Calls `add` for everything to wait for.
    pub(crate) fn sources<'a>(
        &'a self,
        mut add: impl FnMut(ConsoleEvent, BorrowedFd<'a>, PollFlags),
    ) {
        match &self.input {
            Some(input) if !self.is_full() => {
                add(ConsoleEvent::Input, input.as_fd(), PollFlags::IN)
            }
            _ => {}
        }
        if let Some((listener, _)) = &self.listener {
            match &self.input {
                None => add(ConsoleEvent::Connection, listener.as_fd(), PollFlags::IN),
                Some(client) if self.sink.is_stuck() => {
                    add(ConsoleEvent::Unstuck, client.as_fd(), PollFlags::OUT);
                }
                Some(_) => add(ConsoleEvent::Stuck, self.sink.stuck.as_fd(), PollFlags::IN),
            }
        }
    }

    /// Does what `event` asks for.
    pub(crate) fn handle(&mut self, event: ConsoleEvent, serial: &Serial) {
        match event {
            ConsoleEvent::Input => self.read(serial),
            ConsoleEvent::Connection => self.accept(),
            ConsoleEvent::Stuck => drop(rustix::io::read(&self.sink.stuck, &mut [0; 8])),
            ConsoleEvent::Unstuck => self.sink.lock().flush(&self.sink.stuck),
        }
    }

    /// Gives the guest what it has room for.
    pub(crate) fn feed(&mut self, serial: &Serial) {
        let taken = serial.feed(self.unfed.make_contiguous());
        self.unfed.drain(..taken.min(self.unfed.len()));
    }

    fn read(&mut self, serial: &Serial) {
        let Some(input) = &self.input else { return };
        let mut bytes = [0; 256];
        match rustix::io::read(input, &mut bytes) {
            Ok(0) => self.disconnect(),
            Ok(len) => {
                self.unfed.extend(bytes.iter().take(len));
                self.feed(serial);
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.disconnect(),
        }
    }

    /// The end of input. Of a socket it is the end of output too: the next may connect.
    fn disconnect(&mut self) {
        self.input = None;
        if self.listener.is_some() {
            self.sink.lock().target = None;
        }
    }

    fn accept(&mut self) {
        let Some((listener, _)) = &self.listener else {
            return;
        };
        // Who has gone away again is not served.
        let Ok((client, _)) = listener.accept() else {
            return;
        };
        if let Ok(output) = nonblocking(&client) {
            self.input = Some(client.into());
            let mut state = self.sink.lock();
            state.target = Some(output);
            state.flush(&self.sink.stuck);
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(path) = self.socket() {
            // Who removed it before has done the same.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What `sockaddr_un` holds, less the zero at the end.
const LONGEST_SOCKET_PATH: usize = 107;

/// Listens on a Unix socket at `path`, which must not exist.
pub(crate) fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let shown = path.display();
    let listener = match UnixListener::bind(path) {
        Err(_) if path.as_os_str().len() > LONGEST_SOCKET_PATH => {
            bail!("{shown}: a socket's path can have at most {LONGEST_SOCKET_PATH} bytes")
        }
        bound => bound.with_context(|| format!("cannot listen at {shown}"))?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn nonblocking(stream: &UnixStream) -> io::Result<OwnedFd> {
    stream.set_nonblocking(true)?;
    Ok(stream.try_clone()?.into())
}

/// Where output goes. vCPUs write to it one at a time.
struct Sink {
    state: Mutex<SinkState>,
    /// Readable when a socket's output got stuck.
    stuck: OwnedFd,
}

struct SinkState {
    target: Option<OwnedFd>,
    pending: VecDeque<u8>,
    /// Whether output is kept while there is no target. If so, a target that blocks does not hold the guest up.
    keeps: bool,
}

impl Sink {
    fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(SinkState {
                target: None,
                pending: VecDeque::new(),
                keeps: false,
            }),
            stuck: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, SinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stuck(&self) -> bool {
        let state = self.lock();
        state.target.is_some() && !state.pending.is_empty()
    }
}

impl SinkState {
    fn write(&mut self, bytes: &[u8], stuck: &OwnedFd) {
        self.pending.extend(bytes);
        let excess = self.pending.len().saturating_sub(PENDING_MAX);
        self.pending.drain(..excess);
        self.flush(stuck);
    }

    /// Writes what is pending as far as that goes. It ends early for a signal, so that a vCPU whose output nobody
    /// reads can be stopped.
    fn flush(&mut self, stuck: &OwnedFd) {
        while !self.pending.is_empty() {
            let Some(target) = &self.target else {
                if !self.keeps {
                    self.pending.clear();
                }
                return;
            };
            match rustix::io::write(target, self.pending.as_slices().0) {
                Ok(len) => drop(self.pending.drain(..len)),
                Err(Errno::INTR) => return,
                Err(Errno::AGAIN) if self.keeps => {
                    // The counter is only full if nobody has listened for centuries.
                    let _ = rustix::io::write(stuck, &1_u64.to_ne_bytes());
                    return;
                }
                Err(Errno::AGAIN) => {
                    let mut wait = [PollFd::new(target, PollFlags::OUT)];
                    if poll(&mut wait, None).is_err() {
                        return;
                    }
                }
                Err(_) => self.target = None,
            }
        }
    }
}

struct Writer(Arc<Sink>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes, &self.0.stuck);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A terminal out of line mode, which is put back when this is dropped.
struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// `None` when it is no terminal, or not this process's to change.
    fn new(terminal: &OwnedFd) -> Option<Self> {
        if !isatty(terminal) || tcgetpgrp(terminal).ok()? != rustix::process::getpgrp() {
            return None;
        }
        let before = tcgetattr(terminal).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.local_modes |= LocalModes::ISIG;
        // Ctrl-Z and Ctrl-\ are the guest's.
        raw.special_codes[SpecialCodeIndex::VSUSP] = 0;
        raw.special_codes[SpecialCodeIndex::VQUIT] = 0;
        let terminal = terminal.try_clone().ok()?;
        tcsetattr(&terminal, OptionalActions::Now, &raw).ok()?;
        Some(Self { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that has gone away needs no restoring.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    fn console(config: &SerialConfig) -> (Console, Serial) {
        let console = Console::open(config).unwrap().unwrap();
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let serial = Serial::new(irq, console.writer()).unwrap();
        (console, serial)
    }

    fn events(console: &Console) -> Vec<ConsoleEvent> {
        let mut events = Vec::new();
        console.sources(|event, _, _| events.push(event));
        events
    }

    #[test]
    fn a_socket_gets_what_was_written_before_it_connected() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("serial.sock");
        let (mut console, serial) = console(&SerialConfig::Socket {
            socket: socket.clone(),
        });

        console.writer().write_all(b"early ").unwrap();
        let mut client = UnixStream::connect(&socket).unwrap();
        assert_eq!(events(&console), [ConsoleEvent::Connection]);
        console.handle(ConsoleEvent::Connection, &serial);
        console.writer().write_all(b"late").unwrap();

        let mut seen = [0; 10];
        client.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"early late");
    }

    #[test]
    fn a_socket_that_does_not_read_never_holds_the_guest_up_and_catches_up_later() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("serial.sock");
        let (mut console, serial) = console(&SerialConfig::Socket {
            socket: socket.clone(),
        });
        let mut client = UnixStream::connect(&socket).unwrap();
        console.handle(ConsoleEvent::Connection, &serial);

        let line = [b'x'; 1024];
        let mut writer = console.writer();
        while !console.sink.is_stuck() {
            writer.write_all(&line).unwrap();
        }
        writer.write_all(b"the end").unwrap();
        assert!(events(&console).contains(&ConsoleEvent::Unstuck));

        let mut seen = Vec::new();
        while !seen.ends_with(b"the end") {
            let mut bytes = [0; 4096];
            let len = client.read(&mut bytes).unwrap();
            seen.extend_from_slice(&bytes[..len]);
            console.handle(ConsoleEvent::Unstuck, &serial);
        }
        assert!(!console.sink.is_stuck());
    }

    #[test]
    fn the_next_client_is_served_when_the_first_has_gone() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("serial.sock");
        let (mut console, serial) = console(&SerialConfig::Socket {
            socket: socket.clone(),
        });
        for _ in 0..2 {
            let client = UnixStream::connect(&socket).unwrap();
            console.handle(ConsoleEvent::Connection, &serial);
            assert!(events(&console).contains(&ConsoleEvent::Input));
            drop(client);
            console.handle(ConsoleEvent::Input, &serial);
            assert_eq!(events(&console), [ConsoleEvent::Connection]);
        }
    }
}
