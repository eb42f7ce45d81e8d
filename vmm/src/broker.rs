//! What the monitor leaves to its broker: connecting to backends, opening what a guest boots, removing sockets at the end. So the
//! confined monitor knows no path.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_process::broker;
use bulkhead_process::listen::SocketFile;

/// The broker, until the end. Threads that are not waited for have it, too.
#[derive(Clone)]
pub(crate) struct Broker(Arc<Mutex<Option<broker::Broker>>>);

impl Broker {
    /// Starts it. To be called before there is a second thread.
    pub(crate) fn start() -> io::Result<Self> {
        let broker = broker::Broker::start()?;
        Ok(Self(Arc::new(Mutex::new(Some(broker)))))
    }

    /// None at all: what is to be removed stays.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(Arc::default())
    }

    fn lock(&self) -> MutexGuard<'_, Option<broker::Broker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask<T>(&self, question: impl FnOnce(&mut broker::Broker) -> io::Result<T>) -> io::Result<T> {
        match &mut *self.lock() {
            Some(broker) => question(broker),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Has it remove the file of a socket at the end.
    pub(crate) fn remove_at_end(&self, file: SocketFile) -> io::Result<()> {
        match &mut *self.lock() {
            Some(broker) => broker.remove_at_end(file),
            None => {
                // Dropping it would remove it.
                std::mem::forget(file);
                Ok(())
            }
        }
    }

    /// Opens a file for reading.
    pub(crate) fn open(&self, path: &Path) -> io::Result<File> {
        self.ask(|broker| broker.open(path))
    }

    /// How to connect to the socket at `path`, now and later.
    pub(crate) fn connector(
        &self,
        path: &Path,
    ) -> io::Result<impl Fn() -> io::Result<UnixStream> + Send + Sync + use<>> {
        let peer = self.ask(|broker| broker.peer(path))?;
        let broker = self.clone();
        Ok(move || broker.ask(|broker| broker.connect(peer)))
    }

    /// What it learnt so far stays after a [`Self::rollback`].
    pub(crate) fn checkpoint(&self) -> io::Result<()> {
        self.ask(|broker| broker.checkpoint())
    }

    /// Has it forget what it learnt since the checkpoint, and remove the files among that.
    pub(crate) fn rollback(&self) -> io::Result<()> {
        self.ask(|broker| broker.rollback())
    }

    /// From now on it learns of nothing more.
    pub(crate) fn seal(&self) -> io::Result<()> {
        self.ask(broker::Broker::seal)
    }

    /// An orderly end: files are removed.
    pub(crate) fn end(&self) {
        if let Some(broker) = self.lock().take() {
            broker.end();
        }
    }
}
