//! Interrupts and doorbells as eventfds, which work without the monitor.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::{Error, refused};

/// The number of pins of the I/O APIC, which are the first global system interrupts (GSI).
const IOAPIC_PINS: u32 = 24;
/// `KVM_MAX_IRQ_ROUTES`.
const MAX_ROUTES: u32 = 4096;

/// The message of a message-signalled interrupt.
#[derive(Clone, Copy)]
struct Message {
    address: u64,
    data: u32,
}

/// The VM's interrupt routes: pins of the I/O APIC, and messages of devices.
pub struct Interrupts {
    vm: Arc<VmFd>,
    /// The messages by GSI. `None`: the GSI is in use and has no route.
    messages: Mutex<BTreeMap<u32, Option<Message>>>,
}

impl Interrupts {
    pub(crate) fn new(vm: Arc<VmFd>) -> Result<Self, Error> {
        let interrupts = Self {
            vm,
            messages: Mutex::default(),
        };
        interrupts.install(&interrupts.lock())?;
        Ok(interrupts)
    }

    /// Binds `fd` to the I/O APIC's pin `gsi`: each signal is an edge.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn bind_pin(&self, gsi: u32, fd: &EventFd) -> Result<(), Error> {
        self.vm
            .register_irqfd(fd, gsi)
            .map_err(refused("an interrupt line"))
    }

    /// A new message-signalled interrupt, without a route. Dropping it frees its GSI.
    ///
    /// # Errors
    /// When all GSIs are in use, or the process has no more descriptors.
    pub fn allocate(self: &Arc<Self>) -> Result<Interrupt, Error> {
        let eventfd = || {
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                .map_err(|e| Error::Refused("an eventfd", e))
        };
        let (shared, own) = (eventfd()?, eventfd()?);
        let mut messages = self.lock();
        let gsi = (IOAPIC_PINS..MAX_ROUTES)
            .find(|gsi| !messages.contains_key(gsi))
            .ok_or(Error::NoRoute)?;
        messages.insert(gsi, None);
        Ok(Interrupt {
            all: self.clone(),
            gsi,
            shared,
            own,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Option<Message>>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets KVM's whole routing table, since KVM has no request for one entry.
    fn install(&self, messages: &BTreeMap<u32, Option<Message>>) -> Result<(), Error> {
        let pins = (0..IOAPIC_PINS).map(pin_entry);
        let messages = messages
            .iter()
            .filter_map(|(gsi, message)| message.map(|message| message_entry(*gsi, message)));
        let entries: Vec<_> = pins.chain(messages).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| Error::NoRoute)?;
        self.vm
            .set_gsi_routing(&table)
            .map_err(refused("the interrupt routes"))
    }
}

fn pin_entry(gsi: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
    entry.u.irqchip.pin = gsi;
    entry
}

fn message_entry(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

/// One message-signalled interrupt, which either of two eventfds raises: one that a backend gets, and one of the
/// monitor's own. A backend can fill the first and make it block, so the monitor never writes to it, and reads it only
/// without waiting.
pub struct Interrupt {
    all: Arc<Interrupts>,
    gsi: u32,
    shared: EventFd,
    own: EventFd,
}

impl Interrupt {
    /// The eventfd that raises the interrupt while a route is set. While none is set, signals stay in its counter, and
    /// setting a route delivers them.
    #[must_use]
    pub fn eventfd(&self) -> &EventFd {
        &self.shared
    }

    /// Raises the interrupt, as a signal on [`Self::eventfd`] does.
    pub fn signal(&self) {
        // It only fails when the counter is full, and then the interrupt is pending already.
        let _ = self.own.write(1);
    }

    /// Whether a signal is pending because no route is set.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.fds().iter().any(|fd| is_readable(fd))
    }

    fn fds(&self) -> [&EventFd; 2] {
        [&self.shared, &self.own]
    }

    /// Sets the route: a signal writes the message `data` to `address` from now on.
    ///
    /// # Errors
    /// When KVM refuses the route.
    pub fn route(&self, address: u64, data: u32) -> Result<(), Error> {
        let mut messages = self.all.lock();
        let former = messages.insert(self.gsi, Some(Message { address, data }));
        self.all.install(&messages)?;
        if former.flatten().is_none() {
            // Pending signals are cleared, and made again once there is a route, so that each vector starts with empty
            // counters. A signal that comes in between stays in its counter, and KVM delivers it when it binds the
            // eventfd.
            let pending = self.is_pending();
            self.fds().into_iter().for_each(clear);
            for fd in self.fds() {
                self.all
                    .vm
                    .register_irqfd(fd, self.gsi)
                    .map_err(refused("an interrupt"))?;
            }
            if pending {
                self.signal();
            }
        }
        Ok(())
    }

    /// Removes the route: a signal stays in its counter from now on.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn unroute(&self) -> Result<(), Error> {
        let mut messages = self.all.lock();
        // The route stays in KVM's table until the next change, and nothing raises it.
        if let Some(Some(_)) = messages.insert(self.gsi, None) {
            for fd in self.fds() {
                self.all
                    .vm
                    .unregister_irqfd(fd, self.gsi)
                    .map_err(refused("to forget an interrupt"))?;
            }
        }
        Ok(())
    }
}

/// Whether the counter is not zero.
fn is_readable(fd: &EventFd) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `poll` outlives the call, which does not wait. (rustix cannot be used, since `EventFd` does not implement
    // `AsFd`.)
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents & libc::POLLIN != 0 }
}

/// Sets the counter to zero without waiting, even if another process has made the eventfd block.
fn clear(fd: &EventFd) {
    let mut counter = 0_u64;
    let part = libc::iovec {
        iov_base: (&raw mut counter).cast(),
        iov_len: size_of::<u64>(),
    };
    // SAFETY: `part` is `counter`, which outlives the call. Only this system call can read without waiting. When it
    // fails, the counter is zero.
    unsafe { libc::preadv2(fd.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) };
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        // It fails only if KVM has no such binding, and then nothing raises the interrupt anyway.
        let _ = self.unroute();
        self.all.lock().remove(&self.gsi);
    }
}

/// Guest physical addresses at which a write signals an eventfd.
pub struct Doorbells {
    vm: Arc<VmFd>,
}

impl Doorbells {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm }
    }

    /// Binds a doorbell: a guest's write of any length at `address` signals `fd`, and `KVM_RUN` does not return.
    ///
    /// # Errors
    /// When the address has a doorbell, or KVM refuses.
    pub fn bind(&self, address: u64, fd: &EventFd) -> Result<(), Error> {
        self.vm
            .register_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(refused("a doorbell"))
    }

    /// Removes the doorbell that [`Self::bind`] bound.
    ///
    /// # Errors
    /// When `fd` was not bound there.
    pub fn unbind(&self, address: u64, fd: &EventFd) -> Result<(), Error> {
        self.vm
            .unregister_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(refused("to forget a doorbell"))
    }
}

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interrupt")
            .field("gsi", &self.gsi)
            .field("fd", &self.shared.as_raw_fd())
            .finish()
    }
}
