//! The virtio block device. Each queue is a part of the device, with its own requests in flight; all share the image.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use bulkhead_daemon::uring::Uring;
use bulkhead_daemon::{Device, Queue, Queues, RecoveryArea, RingError};
use qcow::Image;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use crate::Aio;
use crate::completions::Completions;
use crate::config::{Config, SECTOR};
use crate::execute::Disk;
use crate::in_flight::{DEPTH, InFlight};
use crate::nowait::NowaitSupport;
use crate::operations::Operations;
use crate::pool::Pool;
use crate::request::{Limits, SERIAL_LENGTH};
use crate::shared::Shared;

/// The unit of discards for images that have no clusters.
const RAW_GRANULARITY: u64 = 4096;

/// What the command line says about the device.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) serial: String,
    pub(crate) queues: u16,
    /// `None`: whatever the kernel allows and is fastest.
    pub(crate) aio: Option<Aio>,
}

/// One queue of a disk for a guest.
pub(crate) struct Block {
    in_flight: InFlight,
    config: Config,
    shared: Arc<Shared>,
}

/// The events of a queue beside kicks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// Operations of the queue's io_uring have ended.
    Ring,
    /// The thread pool has executed requests.
    Pool,
}

/// The queues of the device, each of which another thread can serve. Call this before the process is confined.
pub(crate) fn queues(image: Image, options: &Options) -> Result<Vec<Block>> {
    let size = image.virtual_size();
    ensure!(
        size.is_multiple_of(SECTOR),
        "{}: its size of {size} bytes is not a multiple of {SECTOR}",
        image.path().display()
    );
    let mut serial = [0; SERIAL_LENGTH];
    for (to, from) in serial.iter_mut().zip(options.serial.bytes()) {
        *to = from;
    }
    let limits = Limits {
        size,
        read_only: !image.is_writable(),
    };
    let config = Config {
        size,
        granularity: image.cluster_size().unwrap_or(RAW_GRANULARITY),
        queues: options.queues,
    };
    let in_flight = in_flight(&image, options)?;
    let disk = Arc::new(Disk::new(image, limits));
    let pool = Pool::new(Arc::clone(&disk), options.queues);
    let shared = Arc::new(Shared { disk, pool, serial });
    let block = |in_flight| Block {
        in_flight,
        config,
        shared: Arc::clone(&shared),
    };
    Ok(in_flight.into_iter().map(block).collect())
}

/// Closes the image, so that everything is on the medium.
pub(crate) fn close(mut queues: Vec<Block>) -> Result<()> {
    let in_use = || anyhow!("the image is still in use");
    // The last queue alone holds the shared state then; the pool's threads end with it.
    let last = queues.pop().ok_or_else(in_use)?;
    drop(queues);
    let Block {
        in_flight, shared, ..
    } = last;
    drop(in_flight);
    let Shared { disk, pool, .. } = Arc::into_inner(shared).ok_or_else(in_use)?;
    drop(pool);
    let disk = Arc::into_inner(disk).ok_or_else(in_use)?;
    Ok(disk.image.close()?)
}

/// The (empty) requests in flight of each queue, with an io_uring if the kernel allows one.
fn in_flight(image: &Image, options: &Options) -> Result<Vec<InFlight>> {
    let files = match options.aio {
        Some(Aio::Threads) => None,
        _ => image.files(),
    };
    let nowait = match options.aio {
        Some(_) => NowaitSupport::ASSUMED,
        None => NowaitSupport::default(),
    };
    let of_queue = |_| {
        let completions = Completions::new().context("cannot make an eventfd for the threads")?;
        let completions = Arc::new(completions);
        let ring = files.as_ref().map(|files| Uring::new(files, DEPTH as u32));
        match ring.transpose() {
            Ok(ring) => {
                let ring = ring.map(|ring| Operations::new(ring, nowait));
                Ok(InFlight::new(ring, completions))
            }
            Err(error) if options.aio.is_some() => {
                Err(error).context("--aio io_uring: this process cannot have one")
            }
            Err(_) => Ok(InFlight::new(None, completions)),
        }
    };
    (0..options.queues).map(of_queue).collect()
}

impl Device for Block {
    type Event = Event;

    /// `VIRTIO_BLK_F_CONFIG_WCE` is not offered: a backend that is started again would not know what the driver had
    /// set.
    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
        ];
        if self.shared.disk.limits.read_only {
            bits.push(VIRTIO_BLK_F_RO);
        } else {
            bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        if self.config.queues > 1 {
            bits.push(VIRTIO_BLK_F_MQ);
        }
        bits.into_iter().fold(0, |sum, bit| sum | 1 << bit)
    }

    fn queues(&self) -> u16 {
        self.config.queues
    }

    fn config(&self) -> Vec<u8> {
        self.config.bytes()
    }

    fn negotiated(&mut self, features: u64) {
        let write_through = features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
        self.shared.disk.set_write_through(write_through);
    }

    fn queue_running(&mut self, _index: u16, running: bool) {
        if !running {
            self.in_flight.abandon(&self.shared);
        }
    }

    fn set_recovery_area(&mut self, area: RecoveryArea) {
        self.shared.disk.set_recovery_area(area);
    }

    fn process(&mut self, queue: &mut Queue<'_>) -> Result<(), RingError> {
        self.in_flight.serve(&self.shared, queue)
    }

    fn drain(&mut self, queue: &mut Queue<'_>) -> Result<(), RingError> {
        self.in_flight.drain(&self.shared, queue)
    }

    fn events(&self) -> Vec<(BorrowedFd<'_>, Event)> {
        let ring = self
            .in_flight
            .ring()
            .map(|ring| (ring.as_fd(), Event::Ring));
        let threads = (self.in_flight.completions().event(), Event::Pool);
        ring.into_iter().chain([threads]).collect()
    }

    fn handle(&mut self, event: Event, queues: &mut Queues<'_>) -> io::Result<()> {
        if let Event::Pool = event {
            self.in_flight.completions().clear_event();
        }
        queues.run_each(|queue| self.in_flight.serve(&self.shared, queue));
        Ok(())
    }

    fn disconnected(&mut self) -> io::Result<()> {
        let disk = &self.shared.disk;
        disk.forget_recovery_area();
        disk.image.flush().map_err(io::Error::from)
    }
}
