//! The block device: rings on one side, an image on the other. Each ring is a part of its own, with a lane to the image that all share.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use bulkhead_daemon::uring::Uring;
use bulkhead_daemon::{Device, RecoveryArea, Queue, Queues, RingError};
use qcow::Image;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use crate::Aio;
use crate::config::{Config, SECTOR};
use crate::desk::Desk;
use crate::execute::Disk;
use crate::lane::{self, DEPTH, Lane};
use crate::operations::Operations;
use crate::pool::Pool;
use crate::request::{Limits, SERIAL_LENGTH};
use crate::writes::WritePath;

/// Space is given back in these units where the image has none of its own.
const RAW_GRANULARITY: u64 = 4096;

/// What the command line says about the device.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) serial: String,
    pub(crate) queues: u16,
    /// `None`: as the kernel lets.
    pub(crate) aio: Option<Aio>,
}

/// One queue of a disk for a guest.
pub(crate) struct Block {
    lane: Lane,
    config: Config,
    shared: Arc<lane::Device>,
}

/// What can happen beside kicks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// Operations of the queue's io_uring have ended.
    Ring,
    /// Threads have done requests.
    Threads,
}

/// A disk for a guest: the queues, each of which can be served by another thread. To be made before the process is confined.
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
    let lanes = lanes(&image, options)?;
    let disk = Arc::new(Disk::new(image, limits));
    let pool = Pool::new(Arc::clone(&disk), options.queues);
    let shared = Arc::new(lane::Device { disk, pool, serial });
    let block = |lane| Block {
        lane,
        config,
        shared: Arc::clone(&shared),
    };
    Ok(lanes.into_iter().map(block).collect())
}

/// Puts everything on the medium.
pub(crate) fn close(mut queues: Vec<Block>) -> Result<()> {
    let in_use = || anyhow!("the image is still in use");
    // The last one lets it go, and the threads end with it.
    let last = queues.pop().ok_or_else(in_use)?;
    drop(queues);
    let Block { lane, shared, .. } = last;
    drop(lane);
    let lane::Device { disk, pool, .. } = Arc::into_inner(shared).ok_or_else(in_use)?;
    drop(pool);
    let disk = Arc::into_inner(disk).ok_or_else(in_use)?;
    Ok(disk.image.close()?)
}

/// A lane for each queue, with an io_uring if there is one to be had.
fn lanes(image: &Image, options: &Options) -> Result<Vec<Lane>> {
    let files = match options.aio {
        Some(Aio::Threads) => None,
        _ => image.files(),
    };
    let writes = match options.aio {
        Some(_) => WritePath::RING,
        None => WritePath::default(),
    };
    let lane = |_| {
        let desk = Desk::new().context("cannot make an eventfd for the threads")?;
        let ring = files.as_ref().map(|files| Uring::new(files, DEPTH as u32));
        match ring.transpose() {
            Ok(ring) => {
                let ring = ring.map(|ring| Operations::new(ring, writes));
                Ok(Lane::new(ring, Arc::new(desk)))
            }
            Err(error) if options.aio.is_some() => {
                Err(error).context("--aio io_uring: this process cannot have one")
            }
            Err(_) => Ok(Lane::new(None, Arc::new(desk))),
        }
    };
    (0..options.queues).map(lane).collect()
}

impl Device for Block {
    type Event = Event;

    /// `VIRTIO_BLK_F_CONFIG_WCE` is not among them: a back-end that is started again would not know what the driver had set.
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
            self.lane.abandon(&self.shared);
        }
    }

    fn set_recovery_area(&mut self, area: RecoveryArea) {
        self.shared.disk.set_recovery_area(area);
    }

    fn process(&mut self, queue: &mut Queue<'_>) -> Result<(), RingError> {
        self.lane.serve(&self.shared, queue)
    }

    fn drain(&mut self, queue: &mut Queue<'_>) -> Result<(), RingError> {
        self.lane.drain(&self.shared, queue)
    }

    fn events(&self) -> Vec<(BorrowedFd<'_>, Event)> {
        let ring = self.lane.ring().map(|ring| (ring.as_fd(), Event::Ring));
        let threads = (self.lane.desk().event(), Event::Threads);
        ring.into_iter().chain([threads]).collect()
    }

    fn handle(&mut self, event: Event, queues: &mut Queues<'_>) -> io::Result<()> {
        if let Event::Threads = event {
            self.lane.desk().clear_event();
        }
        queues.run_each(|queue| self.lane.serve(&self.shared, queue));
        Ok(())
    }

    fn disconnected(&mut self) -> io::Result<()> {
        let disk = &self.shared.disk;
        disk.forget_recovery_area();
        disk.image.flush().map_err(io::Error::from)
    }
}
