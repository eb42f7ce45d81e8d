//! The guest's input: the thread that reads it and puts it into the serial port's receive FIFO, as that has space.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bulkhead_devices::Serial;
use bulkhead_process::listen::AcceptPause;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::termios::isatty;

use super::output::Output;

/// The pause while another job has the terminal, or no client can be accepted.
const PAUSE: Duration = Duration::from_millis(500);

/// The source of input.
pub(super) enum Input {
    /// One stream, until its end.
    Stream(OwnedFd),
    /// One client after the other, which gets the output, too.
    Socket(UnixListener),
}

impl Input {
    /// Starts the thread that reads.
    pub(super) fn start(
        self,
        serial: Arc<Serial>,
        output: Arc<Output>,
        enter: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        thread::Builder::new()
            .name("serial-input".into())
            .spawn(move || {
                enter();
                match self {
                    Self::Stream(stream) => read_all(&stream, &serial),
                    Self::Socket(listener) => serve(&listener, &serial, &output),
                }
            })?;
        Ok(())
    }
}

fn serve(listener: &UnixListener, serial: &Serial, output: &Output) {
    let mut pause = AcceptPause::default();
    loop {
        wait(listener);
        let client: OwnedFd = match listener.accept() {
            Ok((client, _)) => client.into(),
            Err(error) => {
                // Without descriptors no client can be accepted, for a while.
                if pause.note("a client of the serial port", &error) {
                    thread::sleep(PAUSE);
                }
                continue;
            }
        };
        let nonblocking = rustix::io::ioctl_fionbio(&client, true).map_err(io::Error::from);
        let Ok(writer) = nonblocking.and_then(|()| client.try_clone()) else {
            continue;
        };
        output.connect(Some(writer));
        read_all(&client, serial);
        output.connect(None);
        // This ends a write that waits for the client.
        let _ = rustix::net::shutdown(&client, Shutdown::Both);
    }
}

/// Reads until the end.
fn read_all(stream: &OwnedFd, serial: &Serial) {
    let mut bytes = [0; 256];
    loop {
        match rustix::io::read(stream, &mut bytes) {
            Ok(0) => return,
            Ok(len) => enqueue_all(serial, bytes.get(..len).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(stream),
            // Another job has the terminal.
            Err(Errno::IO) if isatty(stream) => thread::sleep(PAUSE),
            Err(_) => return,
        }
    }
}

/// Puts all of `bytes` into the receive FIFO, waiting for space.
fn enqueue_all(serial: &Serial, mut bytes: &[u8]) {
    loop {
        let taken = serial.enqueue(bytes);
        bytes = bytes.get(taken..).unwrap_or_default();
        if bytes.is_empty() {
            return;
        }
        wait(&serial.space_event());
    }
}

fn wait(fd: &impl AsFd) {
    // The next read returns an error, if there is one.
    let _ = poll(&mut [PollFd::new(fd, PollFlags::IN)], None);
}
