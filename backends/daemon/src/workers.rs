//! All workers of a device, and their threads.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, Scope};

use crate::device::Device;
use crate::error::Error;
use crate::eventfd::EventFd;
use crate::poll::{Poll, Token};
use crate::worker::Worker;

/// Enough for what a device does to a request.
const STACK: usize = 256 << 10;

/// A worker for each of `parts`. If there is only one part, the main thread serves it, which waits on `poll`.
pub(crate) fn workers_of<'d, D: Device>(
    parts: &'d mut [D],
    rings: u16,
    poll: &Arc<Poll>,
) -> Result<Vec<Worker<'d, D>>, Error> {
    let failed = |error| Error::System("cannot wait for the device", error);
    let number = u16::try_from(parts.len()).unwrap_or(u16::MAX);
    if let [part] = parts {
        return Ok(vec![
            Worker::on_main_thread(part, rings, poll).map_err(failed)?,
        ]);
    }
    (0..number)
        .zip(parts)
        .map(|(part, device)| Worker::with_thread(device, (part, number), rings).map_err(failed))
        .collect()
}

/// The workers of a device that have threads.
pub(crate) struct Workers<'s, 'd, D: Device> {
    workers: &'s [Worker<'d, D>],
    /// Signalled when a thread has ended.
    ended: EventFd,
    poll: Arc<Poll>,
    failure: Mutex<Option<io::Error>>,
}

impl<'s, 'd, D: Device + Send> Workers<'s, 'd, D> {
    /// Has `poll` report [`Token::WorkerEnded`] when one of `workers` ends.
    pub(crate) fn new(workers: &'s [Worker<'d, D>], poll: &Arc<Poll>) -> Result<Self, Error> {
        let ended = EventFd::new().map_err(|error| Error::System("eventfd", error))?;
        poll.add(&ended, Token::WorkerEnded)
            .map_err(Error::system("epoll"))?;
        Ok(Self {
            workers,
            ended,
            poll: Arc::clone(poll),
            failure: Mutex::default(),
        })
    }

    /// Starts the threads. After an error, those that were started still have to be ended.
    pub(crate) fn start<'scope>(&'s self, scope: &'scope Scope<'scope, 's>) -> Result<(), Error> {
        for worker in self.workers.iter().filter(|worker| worker.has_thread()) {
            Builder::new()
                .name("rings".to_owned())
                .stack_size(STACK)
                .spawn_scoped(scope, move || {
                    // A guard, so that a panic is noticed as well.
                    let _ended = SignalOnDrop(&self.ended);
                    if let Err(error) = worker.serve() {
                        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    }
                })
                .map_err(|error| Error::System("cannot start a thread", error))?;
        }
        Ok(())
    }

    /// Why a thread ended that was not asked to.
    pub(crate) fn failure(&self) -> Error {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        Error::Device(
            failure
                .take()
                .unwrap_or_else(|| io::Error::other("a thread of the device has ended")),
        )
    }
}

impl<D: Device> Drop for Workers<'_, '_, D> {
    fn drop(&mut self) {
        self.poll.remove(&self.ended);
    }
}

/// Ends the workers' threads when it is dropped.
pub(crate) struct EndOnDrop<'s, 'd, D: Device>(pub(crate) &'s [Worker<'d, D>]);

impl<D: Device> Drop for EndOnDrop<'_, '_, D> {
    fn drop(&mut self) {
        self.0.iter().for_each(Worker::end);
    }
}

struct SignalOnDrop<'a>(&'a EventFd);

impl Drop for SignalOnDrop<'_> {
    fn drop(&mut self) {
        self.0.signal();
    }
}
