//! Guest RAM as the backend is told of it.
//!
//! vhost-user gives vring addresses in "the frontend's address space". Any numbering serves, as long as table and vrings
//! agree, so the backend is told guest physical addresses with an offset, and never where the monitor's memory is.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};

use super::connection::Connection;
use super::error::{Fault, Result};
use super::requests::SharedRegion;
use crate::virtio::ActiveQueue;

/// What is added to guest physical addresses. Not zero: some backends take the address 0 for "none".
const USER_OFFSET: u64 = 1 << 44;
/// As many regions as every backend takes in one table.
pub(super) const TABLE_REGIONS: usize = 8;

/// The address of guest physical `address` in the address space the backend is told of.
pub(super) fn user_address(address: u64) -> u64 {
    // Guest physical addresses have at most 52 bits.
    address.wrapping_add(USER_OFFSET)
}

/// Whether a backend can map this memory at all.
pub(super) fn check(memory: &GuestMemoryMmap) -> Result<()> {
    let mappable = memory.iter().all(|region| region.file_offset().is_some());
    if mappable && memory.num_regions() > 0 {
        Ok(())
    } else {
        Err(Fault::Memory)
    }
}

/// Whether the whole of it fits in one table; if not, the backend must take it region by region.
pub(super) fn needs_slots(memory: &GuestMemoryMmap) -> bool {
    memory.num_regions() > TABLE_REGIONS
}

/// Gives the backend guest RAM.
pub(super) fn share(connection: &Connection, memory: &GuestMemoryMmap) -> Result<()> {
    let regions: Vec<SharedRegion> = memory
        .iter()
        .filter_map(|region| {
            let file = region.file_offset()?;
            Some(SharedRegion {
                guest: region.start_addr().raw_value(),
                size: region.len(),
                user: user_address(region.start_addr().raw_value()),
                offset: file.start(),
                file: file.file().as_raw_fd(),
            })
        })
        .collect();
    if !needs_slots(memory) {
        return connection.set_mem_table(&regions);
    }
    if connection.max_mem_slots()? < regions.len() as u64 {
        return Err(Fault::Lacks("enough memory slots"));
    }
    regions
        .iter()
        .try_for_each(|region| connection.add_mem_region(region))
}

/// How many requests of the queue have been answered: the used ring's index (virtio 1.2 §2.7.8). From there a new backend
/// goes on.
pub(super) fn used_index(memory: &GuestMemoryMmap, queue: &ActiveQueue) -> u16 {
    index(memory, queue.used)
}

/// How many requests the driver has made: the available ring's index (§2.7.6).
pub(super) fn available_index(memory: &GuestMemoryMmap, queue: &ActiveQueue) -> u16 {
    index(memory, queue.available)
}

/// Both rings begin with flags and an index.
fn index(memory: &GuestMemoryMmap, ring: u64) -> u16 {
    let index = GuestAddress(ring).checked_add(2);
    // The transport has made sure that the ring lies in RAM.
    index
        .and_then(|address| memory.load::<u16>(address, Ordering::Acquire).ok())
        .map_or(0, u16::from_le)
}
