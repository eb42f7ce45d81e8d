//! Builds the machine on a thread of its own, since backends, the kernel's file and guest memory may take their time.
//! Meanwhile the main thread serves the API and handles signals.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, anyhow};
use rustix::event::{EventfdFlags, eventfd};

use crate::broker::Broker;
use crate::config::VmConfig;
use crate::console::Console;
use crate::machine::Machine;

/// A machine that is being built.
pub(crate) struct Build {
    thread: JoinHandle<anyhow::Result<(VmConfig, Machine)>>,
    done: Arc<OwnedFd>,
}

impl Build {
    /// Starts building what `config` describes.
    pub(crate) fn start(
        config: VmConfig,
        console: Option<Console>,
        broker: Broker,
    ) -> anyhow::Result<Self> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let done = Arc::new(eventfd(0, flags).context("cannot make an eventfd for the build")?);
        let signal = Signal(done.clone());
        let thread = thread::Builder::new()
            .name("build".into())
            .spawn(move || {
                let _signal = signal;
                let machine = Machine::new(&config, console, &broker)?;
                Ok((config, machine))
            })
            .context("cannot start a thread")?;
        Ok(Self { thread, done })
    }

    /// Becomes readable when the thread ends.
    pub(crate) fn done(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }

    /// The result, once it is done.
    pub(crate) fn finish(self) -> anyhow::Result<(VmConfig, Machine)> {
        let ended = self.thread.join();
        ended.map_err(|_| anyhow!("building the guest failed"))?
    }
}

/// Signals the end of the thread, even if it panics.
struct Signal(Arc<OwnedFd>);

impl Drop for Signal {
    fn drop(&mut self) {
        // This happens once, so the counter is not full.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

/// Builds the guests of the API's clients, one after the other until one succeeds.
pub(crate) struct Builder<'a> {
    broker: &'a Broker,
    build: Option<Build>,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(broker: &'a Broker) -> io::Result<Self> {
        broker.checkpoint()?;
        Ok(Self {
            broker,
            build: None,
        })
    }

    /// Starts building a guest. No other is being built.
    pub(crate) fn start(&mut self, config: &VmConfig) -> anyhow::Result<()> {
        let started = Console::open(&config.serial, self.broker)
            .and_then(|console| Build::start(config.clone(), console, self.broker.clone()));
        match started {
            Ok(build) => {
                self.build = Some(build);
                Ok(())
            }
            Err(error) => self.undo(error),
        }
    }

    /// Becomes readable when [`Self::take`] has a result.
    pub(crate) fn done(&self) -> Option<BorrowedFd<'_>> {
        self.build.as_ref().map(Build::done)
    }

    /// The guest, if it is built. A failure leaves no sockets or files.
    pub(crate) fn take(&mut self) -> anyhow::Result<Option<(VmConfig, Machine)>> {
        match self.build.take().map(Build::finish) {
            None => Ok(None),
            Some(Ok(guest)) => Ok(Some(guest)),
            Some(Err(error)) => self.undo(error),
        }
    }

    fn undo<T>(&self, error: anyhow::Error) -> anyhow::Result<T> {
        self.broker.rollback()?;
        Err(error)
    }
}
