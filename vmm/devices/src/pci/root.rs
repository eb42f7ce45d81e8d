//! The root bus: which function answers in configuration space, and which BAR answers at which address.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use thiserror::Error;
use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};

use super::function::{Bar, Bdf, PciFunction};
use super::host_bridge::HostBridge;
use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;

const DEVICES: usize = 32;

/// A range of guest physical addresses that belongs to the bus. BARs decode only in there.
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
    /// The range allocated for each of its BARs.
    ranges: Vec<Allocated>,
}

struct Allocated {
    /// The number of the BAR.
    bar: usize,
    /// The number of the window, and so of the allocator.
    window: usize,
    range: RangeInclusive,
}

/// A BAR the bus routes.
#[derive(Clone)]
struct Route {
    bar: Bar,
    device: usize,
    function: Arc<dyn PciFunction>,
}

/// The root bus. It is behind an [`Arc`] because its bus devices ([`Self::ecam`] and so on) share it.
pub struct PciRoot {
    host_bridge: Arc<HostBridge>,
    windows: Vec<Window>,
    functions: RwLock<[Option<Arc<dyn PciFunction>>; DEVICES]>,
    routes: RwLock<Vec<Route>>,
    /// Locked while functions or routes change.
    slots: Mutex<Slots>,
    /// The CONFIG_ADDRESS register.
    pub(super) config_address: AtomicU32,
}

struct Slots {
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
            host_bridge: Arc::new(HostBridge::new()),
            windows: windows.to_vec(),
            functions: RwLock::new([const { None }; DEVICES]),
            routes: RwLock::new(Vec::new()),
            config_address: AtomicU32::new(0),
            slots: Mutex::new(Slots {
                slots: [const { None }; DEVICES],
                allocators: windows.iter().map(allocator).collect::<Result<_, _>>()?,
            }),
        };
        root.add_function(root.host_bridge.clone())?;
        Ok(Arc::new(root))
    }

    /// Puts a function at the first free device number, and its BARs in the windows. They decode once the guest enables
    /// that.
    ///
    /// # Errors
    /// When no device number is free or no window has room.
    pub fn add_function(&self, function: Arc<dyn PciFunction>) -> Result<Bdf, PciError> {
        let mut locked = self.lock();
        let Slots { slots, allocators } = &mut *locked;
        let free = slots.iter().position(Option::is_none);
        let device = free.ok_or(PciError::BusFull)?;
        let mut ranges = Vec::new();
        for bar in function.bars() {
            let Some((window, range)) = allocate(allocators, bar.size) else {
                release(allocators, &ranges);
                return Err(PciError::NoRoom(bar.size));
            };
            let bar = bar.index;
            ranges.push(Allocated { bar, window, range });
        }
        place_bars(&*function, &ranges);
        slots[device] = Some(Slot {
            function: function.clone(),
            ranges,
        });
        let mut functions = self
            .functions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        functions[device] = Some(function);
        Ok(place(device))
    }

    /// Takes a function off the bus.
    pub fn remove_function(&self, bdf: Bdf) -> Option<Arc<dyn PciFunction>> {
        if bdf.bus != 0 || bdf.function != 0 || bdf.device == 0 {
            return None;
        }
        let device = usize::from(bdf.device);
        let mut locked = self.lock();
        let slot = locked.slots.get_mut(device)?.take()?;
        release(&mut locked.allocators, &slot.ranges);
        self.functions
            .write()
            .unwrap_or_else(PoisonError::into_inner)[device] = None;
        self.reroute(&locked);
        Some(slot.function)
    }

    /// The devices that route accesses to BARs, to be put on the memory bus: one for each window.
    #[must_use]
    pub fn mmio(self: &Arc<Self>) -> Vec<(Window, Arc<dyn BusDevice>)> {
        let device = |window: &Window| -> (Window, Arc<dyn BusDevice>) {
            let (root, base) = (self.clone(), window.base);
            (*window, Arc::new(Mmio { root, base }))
        };
        self.windows.iter().map(device).collect()
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
            self.reroute(&self.lock());
        }
    }

    fn function(&self, bdf: Bdf) -> Option<Arc<dyn PciFunction>> {
        if bdf.bus != 0 || bdf.function != 0 {
            return None;
        }
        let functions = self
            .functions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        functions.get(usize::from(bdf.device))?.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates which BARs are routed, and notifies the functions of those that changed.
    fn reroute(&self, slots: &Slots) {
        let mut new: Vec<Route> = Vec::new();
        for (device, slot) in slots.slots.iter().enumerate() {
            for bar in slot.iter().flat_map(|slot| slot.function.bars()) {
                let Some(slot) = slot else { continue };
                // Of BARs that the guest lets overlap, only the first one is routed, so that no doorbell is bound
                // twice.
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

impl Lifecycle for PciRoot {
    /// The machine resets the functions before the bus. As there is no firmware, the bus gives each BAR its first
    /// address again.
    fn reset(&self) {
        self.config_address.store(0, Ordering::Release);
        self.host_bridge.reset();
        let slots = self.lock();
        for slot in slots.slots.iter().flatten() {
            place_bars(&*slot.function, &slot.ranges);
        }
        self.reroute(&slots);
    }
}

/// Writes the allocated addresses into a function's BARs, as firmware does.
fn place_bars(function: &dyn PciFunction, ranges: &[Allocated]) {
    for Allocated { bar, range, .. } in ranges {
        // BARs are the registers from 0x10 to 0x28.
        let register = 0x10 + 4 * *bar as u16;
        function.write_config(register, &range.start().to_le_bytes());
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

/// Allocates a range aligned to its size in the first window with room.
fn allocate(allocators: &mut [AddressAllocator], size: u64) -> Option<(usize, RangeInclusive)> {
    allocators
        .iter_mut()
        .enumerate()
        .find_map(|(number, allocator)| {
            let range = allocator.allocate(size, size, AllocPolicy::FirstMatch);
            Some((number, range.ok()?))
        })
}

fn release(allocators: &mut [AddressAllocator], ranges: &[Allocated]) {
    for Allocated { window, range, .. } in ranges {
        if let Some(allocator) = allocators.get_mut(*window) {
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
