//! Removes returned TAP devices, on a thread of its own: the kernel takes some 20 ms for one device, or for several at
//! once, and clients that send requests meanwhile do not wait for it.
//!
//! The kernel changes interfaces under one lock, so a batch is small, and none begins while a request is served.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result};
use bulkhead_net_protocol::Channel;

use crate::connection::Closing;
use crate::identity::Owner;
use crate::link::Links;

/// How many devices are removed at once.
const MAX_BATCH: usize = 4;

/// A device whose lease has ended.
#[derive(Debug)]
pub(crate) struct Returned {
    pub(crate) index: u32,
    /// The connection that was its lease, and the user. It is closed after the removal, so that a client that waits for
    /// it finds the device gone.
    pub(crate) client: Option<(Channel, u32)>,
}

/// The owner of the devices, and the interface group by which several are removed at once.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) owner: Owner,
    pub(crate) group: u32,
}

/// The handle of the thread.
#[derive(Debug)]
pub(crate) struct Reclaim {
    returned: Sender<Returned>,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    pending: AtomicUsize,
    /// Locked while a request is served.
    serving: Mutex<()>,
}

impl Reclaim {
    /// Starts the thread. `links` must have been opened before the process was confined, and no interface may be in the
    /// group yet.
    pub(crate) fn start(mut links: Links, own: Own, closing: Closing) -> Result<Self> {
        let (returned, receiver) = channel();
        let shared = Arc::new(Shared::default());
        let with_server = shared.clone();
        let work = move || {
            while let Some(batch) = next(&receiver, &with_server) {
                if let Err(error) = remove(&mut links, &batch, &own) {
                    bulkhead_process::warn(&format!("cannot remove a TAP device: {error}"));
                }
                with_server
                    .pending
                    .fetch_sub(batch.len(), Ordering::Relaxed);
                for (channel, user) in batch.into_iter().filter_map(|device| device.client) {
                    closing.close(channel, user);
                }
            }
        };
        let thread = Builder::new().name("reclaim".into()).spawn(work);
        Ok(Reclaim {
            returned,
            shared,
            thread: thread.context("cannot start a thread")?,
        })
    }

    /// Queues a device for removal. The thread then closes its connection.
    pub(crate) fn queue(&self, device: Returned) {
        self.shared.pending.fetch_add(1, Ordering::Relaxed);
        // The thread receives until this value is dropped.
        let _ = self.returned.send(device);
    }

    /// How many devices are not removed yet.
    pub(crate) fn pending(&self) -> usize {
        self.shared.pending.load(Ordering::Relaxed)
    }

    /// Delays the next batch until the guard is dropped.
    pub(crate) fn pause(&self) -> MutexGuard<'_, ()> {
        self.shared.pause()
    }

    /// Waits until all queued devices are removed.
    pub(crate) fn finish(self) {
        drop(self.returned);
        // If the thread has panicked, its devices are removed with their networks.
        let _ = self.thread.join();
    }
}

impl Shared {
    fn pause(&self) -> MutexGuard<'_, ()> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for returned devices, and until no request is being served.
fn next(receiver: &Receiver<Returned>, shared: &Shared) -> Option<Vec<Returned>> {
    let first = receiver.recv().ok()?;
    drop(shared.pause());
    let mut batch = vec![first];
    batch.extend(receiver.try_iter().take(MAX_BATCH - 1));
    Some(batch)
}

/// Removes several devices at once by putting them in a group: the kernel then waits only once for all processors to
/// stop using them.
fn remove(links: &mut Links, batch: &[Returned], own: &Own) -> io::Result<()> {
    let mut taps = Vec::new();
    for device in batch {
        taps.extend(own.owner.tap(links, device.index)?);
    }
    match &taps[..] {
        [] => Ok(()),
        [only] => links.delete(only.index),
        several => {
            for tap in several {
                links.set_group(tap.index, own.group)?;
            }
            links.delete_group(own.group)
        }
    }
}
