//! The block device: rings on one side, an image on the other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use bulkhead_daemon::uring::Uring;
use bulkhead_daemon::{Device, KeptMemory, Queue, Queues, RingError};
use qcow::Image;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use crate::Aio;
use crate::config::{Config, SECTOR};
use crate::execute::Disk;
use crate::lane::{self, DEPTH, Lane};
use crate::pool::Pool;
use crate::request::{Limits, SERIAL_LENGTH};

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

/// A disk for a guest.
pub(crate) struct Block {
    shared: lane::Device,
    lanes: Vec<Lane>,
    config: Config,
}

/// What can happen beside kicks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// Operations of this queue's io_uring have ended.
    Ring(u16),
    /// Threads have done requests.
    Threads,
}

impl Block {
    /// To be made before the process is confined.
    pub(crate) fn new(image: Image, options: &Options) -> Result<Self> {
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
        let pool = Pool::new(Arc::clone(&disk), options.queues)
            .context("cannot make an eventfd for the threads")?;
        Ok(Self {
            shared: lane::Device { disk, pool, serial },
            lanes,
            config,
        })
    }

    /// Puts everything on the medium.
    pub(crate) fn close(self) -> Result<()> {
        let disk = self.shared.disk;
        // Nothing else has it once the threads have ended.
        drop(self.lanes);
        drop(self.shared.pool);
        let disk = Arc::into_inner(disk).ok_or_else(|| anyhow!("the image is still in use"))?;
        Ok(disk.image.close()?)
    }

    fn lane(&mut self, index: u16) -> Option<(&mut Lane, &mut lane::Device)> {
        let lane = self.lanes.get_mut(usize::from(index))?;
        Some((lane, &mut self.shared))
    }

    fn serve(&mut self, queue: &mut Queue<'_>) -> Result<(), RingError> {
        match self.lane(queue.index()) {
            Some((lane, shared)) => lane.serve(shared, queue),
            None => Ok(()),
        }
    }
}

/// Memory for the image's notes.
struct Kept(KeptMemory);

impl qcow::Keep for Kept {
    fn len(&self) -> usize {
        self.0.words()
    }

    fn load(&self, at: usize) -> u64 {
        self.0.load(at)
    }

    fn store(&self, at: usize, word: u64) {
        self.0.store(at, word);
    }
}

/// A lane for each queue, with an io_uring if there is one to be had.
fn lanes(image: &Image, options: &Options) -> Result<Vec<Lane>> {
    let files = match options.aio {
        Some(Aio::Threads) => None,
        _ => image.files(),
    };
    (0..options.queues)
        .map(|number| {
            let ring = files.as_ref().map(|files| Uring::new(files, DEPTH as u32));
            match ring.transpose() {
                Ok(ring) => Ok(Lane::new(number, ring)),
                Err(error) if options.aio.is_some() => {
                    Err(error).context("--aio io_uring: this kernel has none for this process")
                }
                Err(_) => Ok(Lane::new(number, None)),
            }
        })
        .collect()
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

    fn queue_running(&mut self, index: u16, running: bool) {
        if !running && let Some((lane, shared)) = self.lane(index) {
            lane.abandon(shared);
        }
    }

    fn kept(&mut self, memory: KeptMemory) {
        let image = &self.shared.disk.image;
        if let Err(error) = image.set_journal(Some(Box::new(Kept(memory)))) {
            bulkhead_daemon::warn(&error.to_string());
        }
    }

    fn process(&mut self, queue: &mut Queue<'_>) -> Result<(), RingError> {
        self.serve(queue)
    }

    fn drain(&mut self, queue: &mut Queue<'_>) -> Result<(), RingError> {
        match self.lane(queue.index()) {
            Some((lane, shared)) => lane.drain(shared, queue),
            None => Ok(()),
        }
    }

    fn events(&self) -> Vec<(BorrowedFd<'_>, Event)> {
        let rings = (0u16..).zip(&self.lanes).filter_map(|(number, lane)| {
            let ring = lane.ring()?;
            Some((ring.as_fd(), Event::Ring(number)))
        });
        rings
            .chain([(self.shared.pool.event(), Event::Threads)])
            .collect()
    }

    fn handle(&mut self, event: Event, queues: &mut Queues<'_>) -> io::Result<()> {
        let concerned = match event {
            Event::Ring(number) => number..number + 1,
            Event::Threads => {
                self.shared.pool.quiet();
                0..self.config.queues
            }
        };
        for number in concerned {
            let is_concerned = match event {
                Event::Ring(_) => true,
                Event::Threads => self.shared.pool.has_done(number),
            };
            if is_concerned && queues.is_running(number) {
                let runs = queues.run(number, |queue| self.serve(queue));
                if !runs {
                    self.queue_running(number, false);
                }
            }
        }
        Ok(())
    }

    fn disconnected(&mut self) -> io::Result<()> {
        let image = &self.shared.disk.image;
        let flushed = image.flush();
        flushed
            .and_then(|()| image.set_journal(None))
            .map_err(io::Error::from)
    }
}
