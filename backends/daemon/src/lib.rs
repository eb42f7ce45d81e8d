//! `bulkhead-daemon`: what all vhost-user backends share.
//!
//! It has the program conventions of the vhost-user specification, the socket, the serve loop, feature negotiation,
//! guest memory, rings, and the in-flight record by which a backend that was killed goes on where it died. A device
//! adds the rest:
//!
//! ```no_run
//! use bulkhead_daemon::{Confinement, DaemonArgs, Device, Queue, RingError, run};
//!
//! /// Reads everything and answers nothing.
//! struct Sink;
//!
//! impl Device for Sink {
//!     type Event = std::convert::Infallible; // or an enum: one value per extra descriptor, see `events` and `handle`
//!     fn features(&self) -> u64 { 0 }
//!     fn queues(&self) -> u16 { 2 }
//!     fn config(&self) -> Vec<u8> { Vec::new() }
//!     fn process(&mut self, queue: &mut Queue<'_>) -> Result<(), RingError> {
//!         while let Some(chain) = queue.pop()? {
//!             let mut header = [0; 12];
//!             chain.readable().read(queue.memory(), 0, &mut header)?;
//!             queue.complete(chain, 0)?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! # #[derive(clap::Parser)]
//! # struct Args { #[command(flatten)] daemon: DaemonArgs }
//! fn serve(args: &Args) -> Result<(), bulkhead_daemon::Error> {
//!     // What the device needs beyond the serve loop: `iovec::read_at`.
//!     let confinement = Confinement::new().allow(&[libc::SYS_preadv]);
//!     run(&args.daemon, &mut [Sink], confinement)
//! }
//! ```
//!
//! A device that waits for something else (a TAP, an io_uring) returns the descriptor in [`Device::events`]. The daemon
//! then calls [`Device::handle`] with all [`Queues`] of the part; [`Queues::run`] lends it one ring, and notifies the
//! driver afterwards. A chain that was taken and is not needed goes back with [`Queue::give_back`]: for a receive ring,
//! take chains when there is a packet, and give back those that are too many.
//!
//! # Threads
//!
//! A device of one part has one thread and one epoll set, for messages, kicks and device events. A device of several
//! parts ([`Device`]) has a worker thread with an epoll set for each part, and the main thread for messages. A part and
//! its rings (a queue group) have one lock, which the worker leaves to the main thread when that has a message to
//! handle; so a ring that is stopped is drained first, and no request takes a lock that parts share. Threads are
//! started after confinement. A part with several rings serves them in turn, at most a ring's length of requests at a
//! time. A device that must not wait, such as asynchronous storage, returns from each call and goes on by its events;
//! it may have more threads of its own.
//!
//! # Hostile input
//!
//! Message sizes and the numbers of regions, rings, descriptors and bytes are bounded. A message is read once all of it
//! has arrived and there is room for the reply. An invalid message closes the connection or is refused, with one
//! warning; an invalid ring is taken out of service, with one warning, and the others go on. A frontend that truncates
//! memory it shares is disconnected, see `sigbus`.
//!
//! # Why not `vhost_user_backend`
//!
//! Its handler refuses the in-flight messages and starts a thread per group of rings. Its `VringRwLock` and
//! `VringMutex` do not fit either: each operation takes a lock and an atomic reference of guest memory for other
//! threads, of which there are none here; `err` can be set but is never signalled, so a frontend does not learn of a
//! broken ring; and the next index can be set only by `set_queue_next_avail`, without the in-flight record. Its
//! `BitmapMmapRegion` needs an `MmapLogReg`, which only that crate can make. This crate uses what it wraps,
//! `virtio_queue::Queue`, and the messages of `vhost`.
//!
//! It may touch its socket, the descriptors that the frontend sends, and the memory behind them. It must not depend on
//! a device, an image format, or networking.
//!
//! `unsafe` is in six places: [`iovec`], which passes guest memory to system calls, [`uring`], which passes it to the
//! kernel for longer than a call, [`inherited_fd`], which takes over a descriptor by its number, `vring_eventfd`, which
//! finds out whether a descriptor is an eventfd, and `sigbus` and `watchdog`, which handle signals. A device needs
//! none.

mod args;
mod chain;
mod confine;
mod connection;
mod descriptors;
mod device;
mod endpoint;
mod error;
mod eventfd;
mod frontend;
mod inflight;
pub mod iovec;
mod memory;
mod messages;
mod poll;
mod queue;
mod queue_group;
mod ring;
mod rings;
mod running;
mod serve;
mod session;
mod sigbus;
pub mod uring;
mod vring_eventfd;
mod watchdog;
mod worker;
mod workers;

pub use args::{DaemonArgs, DeviceType, print_capabilities};
pub use bulkhead_process::confine::Confinement;
pub use bulkhead_process::warn;
pub use chain::{Buffers, Chain, MAX_CHAIN, Segment};
pub use device::{Device, Queues};
pub use endpoint::inherited_fd;
pub use error::{Error, RingError};
pub use eventfd::EventFd;
pub use inflight::RecoveryArea;
pub use queue::Queue;
pub use ring::MAX_RING_SIZE;
pub use serve::{Daemon, run};
