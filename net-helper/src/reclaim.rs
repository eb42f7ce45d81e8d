//! Takes TAP devices back, on a thread of its own: the kernel needs some 20 ms for a device, or for several at once, and clients that
//! ask meanwhile are not to wait for it.
//!
//! The kernel makes one change of interfaces at a time: that is why a batch is small, and why none begins while a client is served.

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
const BATCH: usize = 4;

/// A device that nobody has a lease of any more.
#[derive(Debug)]
pub(crate) struct Returned {
    pub(crate) index: u32,
    /// The connection that was its lease, and whose: closed last, since who waits for its end is to find the device gone.
    pub(crate) client: Option<(Channel, u32)>,
}

/// Whose the devices are, and the group that they are removed by.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) owner: Owner,
    pub(crate) group: u32,
}

/// The thread, and the devices that it has not removed yet.
#[derive(Debug)]
pub(crate) struct Reclaim {
    returned: Sender<Returned>,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    pending: AtomicUsize,
    serving: Mutex<()>,
}

impl Reclaim {
    /// Starts the thread; `links` is from before the process was confined, and no interface is in the group.
    pub(crate) fn start(mut links: Links, own: Own, closing: Closing) -> Result<Self> {
        let (returned, receiver) = channel();
        let shared = Arc::new(Shared::default());
        let with_server = shared.clone();
        let work = move || {
            while let Some(batch) = next(&receiver, &with_server) {
                if let Err(error) = remove(&mut links, &batch, &own) {
                    bulkhead_process::warn(&format!("cannot take back a TAP device: {error}"));
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

    /// Has a device removed, and then the connection closed.
    pub(crate) fn take(&self, device: Returned) {
        self.shared.pending.fetch_add(1, Ordering::Relaxed);
        // The thread receives as long as this value lives.
        let _ = self.returned.send(device);
    }

    /// How many devices are not removed yet.
    pub(crate) fn pending(&self) -> usize {
        self.shared.pending.load(Ordering::Relaxed)
    }

    /// No batch begins until the result is dropped.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.shared.hold()
    }

    /// Waits until all are removed.
    pub(crate) fn finish(self) {
        drop(self.returned);
        // A thread that has panicked has said so; what it has not removed goes with the bridges.
        let _ = self.thread.join();
    }
}

impl Shared {
    fn hold(&self) -> MutexGuard<'_, ()> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next batch, once no client is being served.
fn next(receiver: &Receiver<Returned>, shared: &Shared) -> Option<Vec<Returned>> {
    let first = receiver.recv().ok()?;
    drop(shared.hold());
    let mut batch = vec![first];
    batch.extend(receiver.try_iter().take(BATCH - 1));
    Some(batch)
}

/// Several at once by a group that they are put in: the kernel then waits once for all processors to be done with them.
fn remove(links: &mut Links, batch: &[Returned], own: &Own) -> io::Result<()> {
    let mut taps = Vec::new();
    for device in batch {
        taps.extend(links.made_tap(device.index, &own.owner)?);
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
