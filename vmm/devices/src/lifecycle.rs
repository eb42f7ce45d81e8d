//! The life of a device, as the machine runs it.

use std::io;

/// A device of the machine.
///
/// ```text
///  new ── restore? ── activate ──┬── pause ── save? ── resume ──┬── remove
///                                └──────────── reset ───────────┘
/// ```
///
/// One thread calls these methods, one at a time, while other threads may be using the device. The order is:
///
/// * A device is built from its configuration, and has its state after power-on. [`Self::restore`] gives it a saved
///   state instead, before [`Self::activate`]. Until it is activated, it starts no thread and accesses no guest RAM.
/// * [`Self::activate`] is called once, before the first vCPU runs.
/// * [`Self::pause`], [`Self::reset`] and [`Self::remove`] are called while no vCPU runs, so that no driver accesses
///   the device meanwhile. A machine stops its vCPUs first, and starts them last.
/// * [`Self::pause`] and [`Self::resume`] alternate. A reset may come at any time between activation and removal; it
///   neither pauses nor resumes.
/// * [`Self::save`] is called while the device is paused.
/// * [`Self::remove`] is the last call. It may come at any time after construction, also for a device that was never
///   activated.
///
/// The machine lists a device after those that it depends on (a function after its bus and after the device that it
/// makes visible). It activates and resumes in that order, and pauses, resets and removes in the opposite one.
///
/// None of the methods waits for another process: a machine that is to end does not wait for a backend. What takes
/// longer is begun, and the device completes it by itself.
pub trait Lifecycle: Send + Sync {
    /// Begins the device's work: starts its threads.
    ///
    /// # Errors
    /// When a thread or descriptor cannot be had.
    fn activate(&self) -> io::Result<()> {
        Ok(())
    }

    /// Gives the device its state after power-on. What the guest did before has no effect afterwards.
    fn reset(&self) {}

    /// Stops what changes guest RAM or the device's queues and buffers by itself: requests are completed and no more
    /// are taken, and input waits outside the device.
    fn pause(&self) {}

    /// Continues after [`Self::pause`].
    fn resume(&self) {}

    /// The state that a new device needs to continue as this one, in a form that later versions of this program can
    /// read. `None`: there is none, or it cannot be saved yet.
    fn save(&self) -> Option<Vec<u8>> {
        None
    }

    /// Takes over a state that [`Self::save`] returned.
    ///
    /// # Errors
    /// When `state` is not one of this device's.
    fn restore(&self, state: &[u8]) -> io::Result<()> {
        let _ = state;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Ends the device's work for good: ends its threads and connections, and takes its interrupts, doorbells and
    /// address ranges away.
    fn remove(&self) {}
}
