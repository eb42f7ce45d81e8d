//! Interrupts and doorbells as eventfds: neither wakes the monitor.

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

/// The pins of the I/O APIC; their numbers are the first global system interrupts (GSI).
const IOAPIC_PINS: u32 = 24;
/// `KVM_MAX_IRQ_ROUTES`.
const MAX_ROUTES: u32 = 4096;

/// Where a message-signalled interrupt goes.
#[derive(Clone, Copy)]
struct Message {
    address: u64,
    data: u32,
}

/// The machine's interrupt routes: I/O APIC pins, and messages of devices.
pub struct Interrupts {
    vm: Arc<VmFd>,
    /// By GSI; those of vectors without a route are present with `None`.
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

    /// From now on a signal on `fd` is an edge on the I/O APIC's pin `gsi`.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn bind_pin(&self, gsi: u32, fd: &EventFd) -> Result<(), Error> {
        self.vm
            .register_irqfd(fd, gsi)
            .map_err(refused("an interrupt line"))
    }

    /// A new message-signalled interrupt, without a route. Its number is free again when it is dropped.
    ///
    /// # Errors
    /// When all routes are taken or the process has no more descriptors.
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

    /// Gives KVM the whole table, which is the only way it takes a change.
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

/// One message-signalled interrupt, raised by either of two eventfds: one to be given away, and one of the monitor's own. Whoever has
/// the first can fill it and make it block, so it is neither written here nor read.
pub struct Interrupt {
    all: Arc<Interrupts>,
    gsi: u32,
    shared: EventFd,
    own: EventFd,
}

impl Interrupt {
    /// The eventfd that raises the interrupt while a route is set. While none is, signals stay in its counter, and
    /// setting a route delivers them.
    #[must_use]
    pub fn eventfd(&self) -> &EventFd {
        &self.shared
    }

    /// Raises the interrupt, as a signal on [`Self::eventfd`] does.
    pub fn signal(&self) {
        // It only fails when the counter is full, and then it is pending already.
        let _ = self.own.write(1);
    }

    /// Whether a signal waits for a route.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.fds().iter().any(|fd| is_readable(fd))
    }

    fn fds(&self) -> [&EventFd; 2] {
        [&self.shared, &self.own]
    }

    /// From now on a signal sends the message `data` to `address`.
    ///
    /// # Errors
    /// When KVM refuses the route.
    pub fn route(&self, address: u64, data: u32) -> Result<(), Error> {
        let mut messages = self.all.lock();
        let former = messages.insert(self.gsi, Some(Message { address, data }));
        self.all.install(&messages)?;
        if former.flatten().is_none() {
            // Signals from before are taken and made again once there is a route, so that each vector starts with empty counters.
            // One that comes in between stays in its counter, and KVM delivers it when it learns of the eventfd.
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

    /// From now on a signal interrupts nobody and stays readable from the eventfd.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn unroute(&self) -> Result<(), Error> {
        let mut messages = self.all.lock();
        // The route itself may stay in KVM's table until the next change: nothing raises it any more.
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
    // SAFETY: `poll` outlives the call, which does not wait. No type of this crate's has a borrowed descriptor for rustix.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents & libc::POLLIN != 0 }
}

/// Sets the counter to zero, also of an eventfd that another process has made to block.
fn clear(fd: &EventFd) {
    let mut counter = 0_u64;
    let part = libc::iovec {
        iov_base: (&raw mut counter).cast(),
        iov_len: size_of::<u64>(),
    };
    // SAFETY: `part` is `counter`, which outlives the call. It is needed because reads without waiting are of this call alone. When
    // it fails, the counter was zero.
    unsafe { libc::preadv2(fd.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) };
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        // An eventfd that KVM does not know any more raises nothing: there is nobody to tell of a failure.
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

    /// From now on a guest write of any length at `address` signals `fd` and does not return from `KVM_RUN`.
    ///
    /// # Errors
    /// When the address is taken or KVM refuses.
    pub fn bind(&self, address: u64, fd: &EventFd) -> Result<(), Error> {
        self.vm
            .register_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(refused("a doorbell"))
    }

    /// Undoes [`Self::bind`].
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
