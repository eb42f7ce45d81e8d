//! The root bus: which function answers in configuration space, and which BAR answers at which address.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use thiserror::Error;
use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};

use super::function::{Bar, Bdf, PciFunction};
use super::host_bridge::HostBridge;
use crate::bus::BusDevice;

const DEVICES: usize = 32;

/// A range of guest physical addresses that belongs to the bus: BARs decode in there and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Window {
    fn holds(&self, address: u64, len: u64) -> bool {
        address
            .checked_sub(self.base)
            .and_then(|at| at.checked_add(len))
            .is_some_and(|end| end <= self.len)
    }
}

/// Why a function cannot be put on the bus.
#[derive(Debug, Error)]
pub enum PciError {
    /// All device numbers are taken.
    #[error("the PCI bus is full: it has {DEVICES} devices")]
    BusFull,
    /// No window has room for a BAR.
    #[error("no PCI window has room for {0:#x} bytes")]
    NoRoom(u64),
    /// A window is empty or wraps around.
    #[error("a PCI window cannot be {len:#x} bytes at {base:#x}", base = .0.base, len = .0.len)]
    Window(Window),
}

struct Slot {
    function: Arc<dyn PciFunction>,
    /// What the allocators gave it: the allocator's number and the range.
    ranges: Vec<(usize, RangeInclusive)>,
}

/// A BAR the bus routes.
#[derive(Clone)]
struct Route {
    bar: Bar,
    device: usize,
    function: Arc<dyn PciFunction>,
}

/// The root bus. It is behind an [`Arc`] because the doors to it ([`Self::ecam`] and so on) share it.
pub struct PciRoot {
    windows: Vec<Window>,
    slots: RwLock<[Option<Arc<dyn PciFunction>>; DEVICES]>,
    routes: RwLock<Vec<Route>>,
    /// Held while functions or routes change.
    ledger: Mutex<Ledger>,
}

struct Ledger {
    slots: [Option<Slot>; DEVICES],
    allocators: Vec<AddressAllocator>,
}

impl PciRoot {
    /// A bus with a host bridge and nothing else. BARs are placed in the first of `windows` that has room.
    ///
    /// # Errors
    /// When a window is not a range.
    pub fn new(windows: &[Window]) -> Result<Arc<Self>, PciError> {
        let allocator = |window: &Window| {
            AddressAllocator::new(window.base, window.len).map_err(|_| PciError::Window(*window))
        };
        let root = Self {
            windows: windows.to_vec(),
            slots: RwLock::new([const { None }; DEVICES]),
            routes: RwLock::new(Vec::new()),
            ledger: Mutex::new(Ledger {
                slots: [const { None }; DEVICES],
                allocators: windows.iter().map(allocator).collect::<Result<_, _>>()?,
            }),
        };
        root.add(Arc::new(HostBridge::new()))?;
        Ok(Arc::new(root))
    }

    /// Puts a function on the bus, in the first free place, and its BARs in the windows. They decode once the guest enables that.
    ///
    /// # Errors
    /// When there is no place or no room.
    pub fn add(&self, function: Arc<dyn PciFunction>) -> Result<Bdf, PciError> {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let Ledger { slots, allocators } = &mut *ledger;
        let free = slots.iter().position(Option::is_none);
        let device = free.ok_or(PciError::BusFull)?;
        let mut ranges = Vec::new();
        for bar in function.bars() {
            let Some((window, range)) = allocate(allocators, bar.size) else {
                release(allocators, &ranges);
                return Err(PciError::NoRoom(bar.size));
            };
            ranges.push((window, range));
            // BARs are registers 0x10..0x28: this is what firmware does.
            let register = 0x10 + 4 * bar.index as u16;
            function.write_config(register, &range.start().to_le_bytes());
        }
        slots[device] = Some(Slot {
            function: function.clone(),
            ranges,
        });
        let mut visible = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        visible[device] = Some(function);
        Ok(place(device))
    }

    /// Takes a function off the bus.
    pub fn remove(&self, bdf: Bdf) -> Option<Arc<dyn PciFunction>> {
        if bdf.bus != 0 || bdf.function != 0 || bdf.device == 0 {
            return None;
        }
        let device = usize::from(bdf.device);
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = ledger.slots.get_mut(device)?.take()?;
        release(&mut ledger.allocators, &slot.ranges);
        self.slots.write().unwrap_or_else(PoisonError::into_inner)[device] = None;
        self.reroute(&ledger);
        Some(slot.function)
    }

    /// What to put on the memory bus for the BARs to answer: each window and its device.
    #[must_use]
    pub fn mmio(self: &Arc<Self>) -> Vec<(Window, Arc<dyn BusDevice>)> {
        let door = |window: &Window| -> (Window, Arc<dyn BusDevice>) {
            let (root, base) = (self.clone(), window.base);
            (*window, Arc::new(Mmio { root, base }))
        };
        self.windows.iter().map(door).collect()
    }

    pub(super) fn read_config(&self, bdf: Bdf, register: u16, data: &mut [u8]) {
        match self.function(bdf) {
            Some(function) => function.read_config(register, data),
            None => data.fill(0xff),
        }
    }

    pub(super) fn write_config(&self, bdf: Bdf, register: u16, data: &[u8]) {
        if let Some(function) = self.function(bdf)
            && function.write_config(register, data)
        {
            let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            self.reroute(&ledger);
        }
    }

    fn function(&self, bdf: Bdf) -> Option<Arc<dyn PciFunction>> {
        if bdf.bus != 0 || bdf.function != 0 {
            return None;
        }
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.get(usize::from(bdf.device))?.clone()
    }

    /// Works out anew which BARs are routed, and tells the functions what changed.
    fn reroute(&self, ledger: &Ledger) {
        let mut new: Vec<Route> = Vec::new();
        for (device, slot) in ledger.slots.iter().enumerate() {
            for bar in slot.iter().flat_map(|slot| slot.function.bars()) {
                let Some(slot) = slot else { continue };
                // Where the guest has put two BARs in one place, the first one answers. So a doorbell is never bound twice.
                let overlaps = |other: &Route| {
                    bar.address < other.bar.address + other.bar.size
                        && other.bar.address < bar.address + bar.size
                };
                if bar.enabled && self.in_a_window(&bar) && !new.iter().any(overlaps) {
                    let function = slot.function.clone();
                    new.push(Route {
                        bar,
                        device,
                        function,
                    });
                }
            }
        }
        new.sort_by_key(|route| route.bar.address);
        let old = {
            let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *routes, new.clone())
        };
        let same = |a: &Route, b: &Route| a.device == b.device && a.bar == b.bar;
        for gone in &old {
            if !new.iter().any(|route| same(route, gone)) {
                gone.function.bar_mapped(gone.bar.index, None);
            }
        }
        for fresh in &new {
            if !old.iter().any(|route| same(route, fresh)) {
                let address = Some(fresh.bar.address);
                fresh.function.bar_mapped(fresh.bar.index, address);
            }
        }
    }

    fn in_a_window(&self, bar: &Bar) -> bool {
        let holds = |window: &Window| window.holds(bar.address, bar.size);
        self.windows.iter().any(holds)
    }

    fn route(&self, address: u64) -> Option<(Arc<dyn PciFunction>, usize, u64)> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let after = routes.partition_point(|route| route.bar.address <= address);
        let route = routes.get(after.checked_sub(1)?)?;
        let offset = address - route.bar.address;
        (offset < route.bar.size).then(|| (route.function.clone(), route.bar.index, offset))
    }
}

fn place(device: usize) -> Bdf {
    Bdf {
        bus: 0,
        // Below DEVICES.
        device: device as u8,
        function: 0,
    }
}

/// BARs are aligned to their size. The first window with room wins.
fn allocate(allocators: &mut [AddressAllocator], size: u64) -> Option<(usize, RangeInclusive)> {
    allocators
        .iter_mut()
        .enumerate()
        .find_map(|(number, allocator)| {
            let range = allocator.allocate(size, size, AllocPolicy::FirstMatch);
            Some((number, range.ok()?))
        })
}

fn release(allocators: &mut [AddressAllocator], ranges: &[(usize, RangeInclusive)]) {
    for (number, range) in ranges {
        if let Some(allocator) = allocators.get_mut(*number) {
            // It was allocated here, so it can be freed.
            let _ = allocator.free(range);
        }
    }
}

struct Mmio {
    root: Arc<PciRoot>,
    base: u64,
}

impl BusDevice for Mmio {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.root.route(self.base + offset) {
            Some((function, bar, offset)) => function.read_bar(bar, offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, bar, offset)) = self.root.route(self.base + offset) {
            function.write_bar(bar, offset, data);
        }
    }
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
