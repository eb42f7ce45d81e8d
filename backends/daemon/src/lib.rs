//! `bulkhead-daemon`: what every vhost-user back-end shares.
//!
//! It is the program conventions of the vhost-user specification, the socket, the serve loop, feature negotiation, guest memory, rings,
//! and the in-flight record by which a back-end that was killed goes on where it died. A device is the rest:
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
//!     let confinement = Confinement::new().allow(&[libc::SYS_preadv]); // for `iovec::read_at`: what the device needs beyond the loop
//!     run(&args.daemon, &mut [Sink], confinement)
//! }
//! ```
//!
//! A device that also waits for something else (a TAP, an io_uring) names it in [`Device::events`] and is called in
//! [`Device::handle`] with all its [`Queues`]; [`Queues::run`] gives it one ring, and tells the driver afterwards. A chain that was taken
//! and is not needed goes back with [`Queue::give_back`] (receive rings: take chains when there is a packet, give back what is too many).
//!
//! # Threads
//!
//! A device of one part has one thread and one epoll: messages, kicks and device events never meet. A device of several parts ([`Device`])
//! has a thread and an epoll for each, and one for messages. A part belongs to one of the two at a time, by one lock that its own
//! thread leaves to the messages when they want it; so a ring that is stopped is drained, and no request takes a lock for the other
//! parts' sake. Threads are started after confinement. A part with several rings serves them fairly, a ring's length of
//! requests at a time. A device that must not wait (storage that is asynchronous) waits by its events; more threads are its own affair.
//!
//! # Hostile input
//!
//! Message sizes, numbers of regions, rings, descriptors and bytes are bounded; a message is read when all of it is there and an answer
//! will fit. A message that makes no sense closes the connection or is refused with one line; a ring that makes no sense is taken out of
//! service with one line and the others go on. A frontend that truncates memory it shares is disconnected, see `sigbus`.
//!
//! # Why not `vhost_user_backend`
//!
//! Its handler refuses the in-flight messages and starts a thread per group of rings. Its `VringRwLock` and `VringMutex` do not fit
//! either: each operation takes a lock and an atomic reference of guest memory for threads there are none of here; `err` can be set
//! and never used, so that a frontend could not be told of a broken ring; and the next index can be told only by
//! `set_queue_next_avail` without a look at the record. Its `BitmapMmapRegion` needs a `MmapLogReg`, which only the crate itself can
//! make. What it wraps, `virtio_queue::Queue`, is used directly, and `vhost` has the messages.
//!
//! It may touch its socket, the descriptors the frontend sends, and the memory behind them. It must not depend on a device, on an image
//! format, or on networking.
//!
//! `unsafe` is in six places: [`iovec`], which gives guest memory to system calls, [`uring`], which gives it to the kernel for longer than
//! a call, [`inherited_fd`], which takes over a descriptor that is named by number, `vring_eventfd`, which asks what a descriptor is, and
//! `sigbus` and `watchdog`, which handle signals. A device needs none.

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
