//! The block device: rings on one side, an image on the other.

use std::convert::Infallible;
use std::io;

use anyhow::{Result, ensure};
use bulkhead_daemon::{Chain, Device, Queue, RingError};
use qcow::Image;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use vm_memory::GuestMemoryMmap;

use crate::config::{Config, SECTOR};
use crate::execute::{Data, execute};
use crate::memory::GuestBuffers;
use crate::request::{Disk, HEADER, Request, SERIAL_LENGTH, Status, status_offset};

/// Space is given back in these units where the image has none of its own.
const RAW_GRANULARITY: u64 = 4096;
/// Errors of the image that are told on standard error; a broken disk has many.
const MAX_COMPLAINTS: u8 = 10;

/// What the command line says about the device.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) serial: String,
    pub(crate) queues: u16,
}

/// A disk for a guest.
#[derive(Debug)]
pub(crate) struct Block {
    image: Image,
    disk: Disk,
    config: Config,
    serial: [u8; SERIAL_LENGTH],
    /// The driver does not flush, so each write is put on the medium before it is done. (virtio 1.2, 5.2.5.2)
    write_through: bool,
    complaints: u8,
}

impl Block {
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
        Ok(Self {
            disk: Disk {
                size,
                read_only: !image.is_writable(),
            },
            config: Config {
                size,
                granularity: image.cluster_size().unwrap_or(RAW_GRANULARITY),
                queues: options.queues,
            },
            image,
            serial,
            write_through: true,
            complaints: 0,
        })
    }

    /// Puts everything on the medium.
    pub(crate) fn close(self) -> Result<()> {
        Ok(self.image.close()?)
    }

    /// Does all requests there are. Those that may not be told of yet are in `held` then.
    fn serve_all(&mut self, queue: &mut Queue<'_>, held: &mut Vec<Chain>) -> Result<(), RingError> {
        while let Some(chain) = queue.pop()? {
            self.serve(queue.memory(), &chain)?;
            held.push(chain);
            // A flush, or tables that were full, may have put them there already.
            if !self.image.is_ahead() {
                held.drain(..)
                    .try_for_each(|chain| complete(queue, chain))?;
            }
        }
        Ok(())
    }

    /// Puts the image's tables into its file, and tells of the requests that waited for that.
    fn release(&mut self, queue: &mut Queue<'_>, held: Vec<Chain>) -> Result<(), RingError> {
        if held.is_empty() {
            return Ok(());
        }
        let flushed = self.image.flush();
        if let Err(error) = &flushed {
            self.complain(error);
        }
        for chain in held {
            if flushed.is_err() {
                set_status(queue.memory(), &chain, Status::IoError)?;
            }
            complete(queue, chain)?;
        }
        Ok(())
    }

    /// Does one request, and notes how it ended.
    fn serve(&mut self, memory: &GuestMemoryMmap, chain: &Chain) -> Result<(), RingError> {
        let status = match self.disk.parse(memory, chain)? {
            Ok(request) => self.answer(memory, chain, &request)?,
            Err(status) => status,
        };
        set_status(memory, chain, status)
    }

    fn answer(
        &mut self,
        memory: &GuestMemoryMmap,
        chain: &Chain,
        request: &Request,
    ) -> Result<Status, RingError> {
        let (readable, writable) = (chain.readable(), chain.writable());
        let done = match request {
            Request::GetId => {
                let length = status_offset(chain)?.min(SERIAL_LENGTH as u32);
                let serial = self.serial.get(..length as usize).unwrap_or_default();
                writable.write(memory, 0, serial)?;
                Ok(())
            }
            Request::Read(_) => {
                let length = status_offset(chain)?;
                let mut buffers = GuestBuffers::new(memory, writable, 0, length)?;
                let data = Data::In(&mut buffers);
                execute(&self.image, request, data, false)
            }
            Request::Write(_) => {
                let length = readable.length().saturating_sub(HEADER);
                let buffers = GuestBuffers::new(memory, readable, HEADER, length)?;
                let data = Data::Out(&buffers);
                execute(&self.image, request, data, self.write_through)
            }
            _ => execute(&self.image, request, Data::None, self.write_through),
        };
        Ok(match done {
            Ok(()) => Status::Ok,
            Err(error) => {
                self.complain(&error);
                Status::IoError
            }
        })
    }

    fn complain(&mut self, error: &qcow::Error) {
        if self.complaints < MAX_COMPLAINTS {
            self.complaints += 1;
            bulkhead_daemon::warn(&error.to_string());
        }
    }
}

fn set_status(memory: &GuestMemoryMmap, chain: &Chain, status: Status) -> Result<(), RingError> {
    let at = status_offset(chain)?;
    chain.writable().write(memory, at, &[status.byte()])
}

/// Whatever became of the request, all its writable buffers are the driver's again.
fn complete(queue: &mut Queue<'_>, chain: Chain) -> Result<(), RingError> {
    let written = chain.writable().length();
    queue.complete(chain, written)
}

impl Device for Block {
    type Event = Infallible;

    /// `VIRTIO_BLK_F_CONFIG_WCE` is not among them: a back-end that is started again would not know what the driver had set.
    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
        ];
        if self.disk.read_only {
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
        self.write_through = features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
    }

    /// A driver that was told of a write must find it again even if this process is killed the moment after. So where the image has new
    /// tables that are not in its file, what depends on them is told only after they are; once for all requests at hand.
    fn process(&mut self, queue: &mut Queue<'_>) -> Result<(), RingError> {
        let mut held = Vec::new();
        let served = self.serve_all(queue, &mut held);
        self.release(queue, held)?;
        served
    }

    fn disconnected(&mut self) -> io::Result<()> {
        self.image.flush().map_err(io::Error::from)
    }
}
