//! The other end of the guest's serial port: a terminal, a file, a socket or nothing.
//!
//! Each direction has a thread, which alone waits for the other end. A vCPU only puts bytes into a buffer, so the guest
//! runs on when nobody reads its output.

mod input;
mod output;
mod terminal;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bulkhead_devices::Serial;
use bulkhead_process::listen;

use crate::broker::Broker;
use crate::config::SerialConfig;
use input::Input;
use output::{Output, Writer};
use terminal::RawTerminal;

/// The other end of the serial port.
pub(crate) struct Console {
    output: Arc<Output>,
    /// The source of input, until the thread that reads it is started.
    input: Option<Input>,
    /// Whether output is written anywhere.
    writes: bool,
    raw: Option<RawTerminal>,
}

impl Console {
    /// Opens what `config` names. Returns `None` when the guest has no serial port.
    pub(crate) fn open(config: &SerialConfig, broker: &Broker) -> anyhow::Result<Option<Self>> {
        let mut console = Self {
            output: Arc::default(),
            input: None,
            writes: true,
            raw: None,
        };
        match config {
            SerialConfig::Off => return Ok(None),
            SerialConfig::Null => console.writes = false,
            SerialConfig::Tty => {
                // A closed descriptor is treated as one at its end.
                let input = io::stdin().as_fd().try_clone_to_owned().ok();
                console.input = input.map(Input::Stream);
                console
                    .output
                    .connect(io::stdout().as_fd().try_clone_to_owned().ok());
            }
            SerialConfig::File { file } => {
                let opened = open_output(file)
                    .with_context(|| format!("--serial: cannot write {}", file.display()))?;
                console.output.connect(Some(opened));
            }
            SerialConfig::Socket { socket } => {
                let (listener, file) = listen::listen(socket).context("--serial")?.into_parts();
                console.input = Some(Input::Socket(listener.into()));
                broker.remove_at_end(file).context("--serial")?;
                console.output.keep_while_alone();
            }
        }
        Ok(Some(console))
    }

    /// Puts the terminal into raw mode, if input is one and this is its foreground job. Ctrl-C still interrupts.
    pub(crate) fn make_raw(&mut self) {
        if let Some(Input::Stream(input)) = &self.input {
            self.raw = RawTerminal::new(input);
        }
    }

    /// The writer for the guest's output.
    pub(crate) fn writer(&self) -> Box<dyn Write + Send> {
        Box::new(Writer(self.output.clone()))
    }

    /// Starts the threads. `enter` is what each does first.
    pub(crate) fn start(
        &mut self,
        serial: &Arc<Serial>,
        enter: impl Fn() + Clone + Send + 'static,
    ) -> io::Result<()> {
        if let Some(input) = self.input.take() {
            input.start(serial.clone(), self.output.clone(), enter.clone())?;
        }
        if self.writes {
            output::start(self.output.clone(), enter)?;
        }
        Ok(())
    }

    /// Waits until the guest's output is written, or the other end takes no more.
    pub(crate) fn finish(&self) {
        self.output.drain();
    }
}

/// Opens a file for writing and truncates it. It may be a FIFO without a reader.
fn open_output(path: &Path) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let opened = match options.open(path) {
        // A FIFO without a reader cannot be opened for writing alone.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) && is_fifo(path) => {
            options.read(true).open(path)
        }
        opened => opened,
    };
    opened.map(OwnedFd::from)
}

fn is_fifo(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo())
}

#[cfg(test)]
mod tests;
