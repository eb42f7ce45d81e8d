//! What the broker process does for the confined monitor: it connects to backends, opens the kernel and the initramfs,
//! and removes sockets at the end.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_process::broker;
use bulkhead_process::listen::SocketFile;

/// The broker, until it is ended. Threads that outlive that have clones of this.
#[derive(Clone)]
pub(crate) struct Broker(Arc<Mutex<Option<broker::Broker>>>);

impl Broker {
    /// Starts the broker. This is called before a second thread is started.
    pub(crate) fn start() -> io::Result<Self> {
        let broker = broker::Broker::start()?;
        Ok(Self(Arc::new(Mutex::new(Some(broker)))))
    }

    /// No broker: files are not removed.
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

    /// Has the broker remove a socket's file at the end.
    pub(crate) fn remove_at_end(&self, file: SocketFile) -> io::Result<()> {
        match &mut *self.lock() {
            Some(broker) => broker.remove_at_end(file),
            None => {
                // Dropping it would remove the file now.
                std::mem::forget(file);
                Ok(())
            }
        }
    }

    /// Opens a file for reading.
    pub(crate) fn open(&self, path: &Path) -> io::Result<File> {
        self.ask(|broker| broker.open(path))
    }

    /// A function that connects to the socket at `path`, now and later.
    pub(crate) fn connector(
        &self,
        path: &Path,
    ) -> io::Result<impl Fn() -> io::Result<UnixStream> + Send + Sync + use<>> {
        let peer = self.ask(|broker| broker.peer(path))?;
        let broker = self.clone();
        Ok(move || broker.ask(|broker| broker.connect(peer)))
    }

    /// What the broker has learnt so far stays after a [`Self::rollback`].
    pub(crate) fn checkpoint(&self) -> io::Result<()> {
        self.ask(|broker| broker.checkpoint())
    }

    /// Has the broker forget what it has learnt since the checkpoint, and remove those files.
    pub(crate) fn rollback(&self) -> io::Result<()> {
        self.ask(|broker| broker.rollback())
    }

    /// From now on the broker accepts no new paths.
    pub(crate) fn seal(&self) -> io::Result<()> {
        self.ask(broker::Broker::seal)
    }

    /// Ends the broker, which removes the files.
    pub(crate) fn end(&self) {
        if let Some(broker) = self.lock().take() {
            broker.end();
        }
    }
}
