//! From the TAP device to the guest.
//!
//! The length of a frame is known only when it has been read, and then it is gone from the TAP device. So a frame is
//! read into as many of the guest's buffers as the frame before it needed. The rest, if it does not fit, goes into a
//! spill buffer of this process, and is copied from there into further buffers. Thus a stream of large segments goes
//! without a copy, and a stream of small frames as well.
//!
//! If the guest has buffers, but too few, the frame waits in the spill buffer for more, and the frames behind it wait
//! in the TAP device. Since a driver may never offer enough, the frame is dropped after a while
//! ([`Receiver::give_up`]).

use std::io;

use bulkhead_daemon::{Chain, MAX_CHAIN, Queue, RingError, iovec};
use tap::{Tap, VNET_HDR_LEN};
use vm_memory::VolatileSlice;

use crate::transmit::{gone, is_gone};

/// The longest frame of a TAP device: header, Ethernet with a VLAN tag, and the largest IP packet; rounded up.
const LONGEST: usize = VNET_HDR_LEN + 18 + 65_535 + 3;

/// The offset of `num_buffers` in `virtio_net_hdr_v1`.
const NUM_BUFFERS_AT: u32 = 10;

/// The most frames that are dropped in one turn because the guest has no room for them.
const MOST_DROPPED: usize = 1024;

/// The receiving side of one pair of queues.
#[derive(Debug)]
pub(crate) struct Receiver {
    /// The part of a frame that does not fit in the buffers that were taken.
    spill: Vec<u8>,
    /// How many buffers the last frame needed.
    ahead: usize,
    /// Buffers that were taken and are not completed. Empty between turns.
    held: Vec<Chain>,
    /// The length of a frame that could not be delivered in the last turn; all of it is in the spill buffer.
    pending: Option<usize>,
    /// Whether there were too few buffers for it.
    waiting: bool,
    /// Whether the TAP device was read from in the last turn.
    read: bool,
}

/// Whether a frame fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It fits in this many buffers.
    Fits(usize),
    /// There are not enough buffers.
    NoRoom,
    /// The turn is over; there may be enough in the next.
    NoTurn,
}

impl Receiver {
    pub(crate) fn new() -> Self {
        Receiver {
            spill: vec![0; LONGEST],
            ahead: 1,
            held: Vec::new(),
            pending: None,
            waiting: false,
            read: false,
        }
    }

    /// Whether the last turn has read from the TAP device. If so, the read failed if the device is gone.
    pub(crate) fn has_read(&self) -> bool {
        self.read
    }

    /// Receives until the TAP device has no more frames, or the guest has no more buffers (then the driver will kick).
    pub(crate) fn receive(
        &mut self,
        tap: &Tap,
        queue: &mut Queue<'_>,
        mergeable: bool,
    ) -> Result<(), RingError> {
        let result = self.receive_all(tap, queue, mergeable);
        // The chain taken last must go back first.
        while let Some(chain) = self.held.pop() {
            queue.give_back(chain)?;
        }
        result
    }

    /// Whether a frame waits for more buffers. Until the driver offers them, nothing is read from the TAP device.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Drops the frame that waits.
    pub(crate) fn give_up(&mut self) {
        self.pending = None;
        self.waiting = false;
    }

    fn receive_all(
        &mut self,
        tap: &Tap,
        queue: &mut Queue<'_>,
        mergeable: bool,
    ) -> Result<(), RingError> {
        if !mergeable {
            self.ahead = 1;
        }
        self.waiting = false;
        self.read = false;
        let (mut dropped, mut received) = (0, 0);
        while dropped < MOST_DROPPED && self.take(queue, self.ahead)? {
            let (length, direct) = match self.pending.take() {
                Some(length) => (length, 0),
                None => match self.read(tap, queue) {
                    Ok(read) => read,
                    Err(ReadError::Ring(error)) => return Err(error),
                    Err(ReadError::Tap(error)) if is_gone(&error) => return Err(gone(tap)),
                    // There is no frame, or none that can be read now; an event of the TAP device follows.
                    Err(ReadError::Tap(_)) => break,
                },
            };
            match self.gather(queue, length, mergeable)? {
                Fate::Fits(buffers) => {
                    self.spread(queue, length, direct, buffers)?;
                    self.complete(queue, length, buffers)?;
                    received += 1;
                }
                Fate::NoTurn if received > 0 => return self.postpone(queue, length, direct),
                Fate::NoRoom if mergeable => {
                    self.waiting = true;
                    queue.want_more();
                    return self.postpone(queue, length, direct);
                }
                // A whole turn is too short for it, or one buffer is.
                Fate::NoTurn | Fate::NoRoom => dropped += 1,
            }
        }
        Ok(())
    }

    /// Takes buffers until `count` are held, or as many as there are. Whether any are held.
    fn take(&mut self, queue: &mut Queue<'_>, count: usize) -> Result<bool, RingError> {
        while self.held.len() < count.max(1) && self.take_one(queue)? {}
        Ok(!self.held.is_empty())
    }

    fn take_one(&mut self, queue: &mut Queue<'_>) -> Result<bool, RingError> {
        let Some(chain) = queue.pop()? else {
            return Ok(false);
        };
        if chain.writable().length() < VNET_HDR_LEN as u32 {
            return Err(RingError::Device(
                "a receive buffer is too small for a frame's header".into(),
            ));
        }
        self.held.push(chain);
        Ok(true)
    }

    /// Reads one frame into the buffers that are held and the spill. Its length, and how much of it is in the buffers.
    fn read(&mut self, tap: &Tap, queue: &Queue<'_>) -> Result<(usize, usize), ReadError> {
        let mut slices = Vec::with_capacity(self.held.len().saturating_add(1));
        for chain in &self.held {
            let buffers = chain.writable();
            slices.extend(
                buffers
                    .slices(queue.memory(), 0, buffers.length())
                    .map_err(ReadError::Ring)?,
            );
        }
        // There must be room for the spill in one system call, or a frame could be cut unnoticed.
        slices.truncate(MAX_CHAIN - 1);
        let room: usize = slices.iter().map(VolatileSlice::len).sum();
        slices.push(VolatileSlice::from(self.spill.as_mut_slice()));
        let read = iovec::read(tap, &slices);
        drop(slices);
        self.read = true;
        let length = read.map_err(ReadError::Tap)?;
        Ok((length, length.min(room)))
    }

    /// Finds out how many buffers a frame of `length` bytes needs, and takes what is missing of them where they may be
    /// merged.
    fn gather(
        &mut self,
        queue: &mut Queue<'_>,
        length: usize,
        mergeable: bool,
    ) -> Result<Fate, RingError> {
        if length < VNET_HDR_LEN {
            return Ok(Fate::NoRoom);
        }
        let (mut room, mut buffers) = (0usize, 0);
        while room < length {
            if buffers == self.held.len() && !(mergeable && self.take_one(queue)?) {
                let later = mergeable && queue.turn_is_over();
                return Ok(if later { Fate::NoTurn } else { Fate::NoRoom });
            }
            let next = self.held.get(buffers);
            room = room.saturating_add(next.map_or(0, |c| c.writable().length() as usize));
            buffers += 1;
        }
        Ok(Fate::Fits(buffers))
    }

    /// Copies what was spilled into the buffers, after the first `direct` bytes.
    fn spread(
        &self,
        queue: &Queue<'_>,
        length: usize,
        direct: usize,
        buffers: usize,
    ) -> Result<(), RingError> {
        let mut before = 0usize;
        for chain in self.held.iter().take(buffers) {
            let room = chain.writable().length() as usize;
            let end = length.min(before.saturating_add(room));
            let start = direct.max(before);
            if start < end {
                let spilled = self
                    .spill
                    .get(start - direct..end - direct)
                    .unwrap_or_default();
                chain
                    .writable()
                    .write(queue.memory(), narrow(start - before), spilled)?;
            }
            before = before.saturating_add(room);
        }
        Ok(())
    }

    /// Keeps a frame for the next turn: all of it goes to the spill.
    fn postpone(
        &mut self,
        queue: &Queue<'_>,
        length: usize,
        direct: usize,
    ) -> Result<(), RingError> {
        if length > self.spill.len() {
            return Ok(());
        }
        self.spill.copy_within(..length - direct, direct);
        let mut rest = self.spill.get_mut(..direct).unwrap_or_default();
        for chain in &self.held {
            let part = rest.len().min(chain.writable().length() as usize);
            let (into, after) = rest.split_at_mut(part);
            chain.writable().read(queue.memory(), 0, into)?;
            rest = after;
        }
        self.pending = Some(length);
        Ok(())
    }

    /// Gives the driver the first buffers, which hold a frame of `length` bytes.
    fn complete(
        &mut self,
        queue: &mut Queue<'_>,
        length: usize,
        buffers: usize,
    ) -> Result<(), RingError> {
        if let Some(first) = self.held.first() {
            let count = u16::try_from(buffers).unwrap_or(u16::MAX);
            first
                .writable()
                .write(queue.memory(), NUM_BUFFERS_AT, &count.to_le_bytes())?;
        }
        self.ahead = buffers;
        let mut left = narrow(length);
        queue.complete_together(self.held.drain(..buffers).map(|chain| {
            let written = chain.writable().length().min(left);
            left -= written;
            (chain, written)
        }))
    }
}

enum ReadError {
    Ring(RingError),
    Tap(io::Error),
}

/// Lengths of frames are far below 2^32.
fn narrow(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
