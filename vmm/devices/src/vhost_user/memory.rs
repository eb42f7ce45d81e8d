//! Shares guest RAM with the backend.
//!
//! In vhost-user, vring addresses are in "the frontend's address space". Any numbering is right as long as memory table
//! and vrings use the same, so this one is guest physical addresses with an offset. The backend never learns where the
//! monitor's memory is.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};

use super::connection::Connection;
use super::error::{Fault, Result};
use super::requests::SharedRegion;
use crate::virtio::ActiveQueue;

/// The offset added to guest physical addresses. It is not 0, because for some backends the address 0 means "none".
const USER_OFFSET: u64 = 1 << 44;
/// The number of regions that every backend accepts in one table.
pub(super) const TABLE_REGIONS: usize = 8;

/// Guest physical `address` in the address space that the backend uses.
pub(super) fn user_address(address: u64) -> u64 {
    // Guest physical addresses have at most 52 bits.
    address.wrapping_add(USER_OFFSET)
}

/// Checks that a backend can map this memory.
pub(super) fn check(memory: &GuestMemoryMmap) -> Result<()> {
    let mappable = memory.iter().all(|region| region.file_offset().is_some());
    if mappable && memory.num_regions() > 0 {
        Ok(())
    } else {
        Err(Fault::Memory)
    }
}

/// Whether there are too many regions for one table, so that they have to be added one by one.
pub(super) fn needs_slots(memory: &GuestMemoryMmap) -> bool {
    memory.num_regions() > TABLE_REGIONS
}

/// Sends the backend the regions of guest RAM.
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

/// The used ring's index (virtio 1.2 §2.7.8): the number of requests completed. A new backend begins there.
pub(super) fn used_index(memory: &GuestMemoryMmap, queue: &ActiveQueue) -> u16 {
    index(memory, queue.used)
}

/// The available ring's index (§2.7.6): the number of requests made.
pub(super) fn available_index(memory: &GuestMemoryMmap, queue: &ActiveQueue) -> u16 {
    index(memory, queue.available)
}

/// Both rings begin with flags and an index.
fn index(memory: &GuestMemoryMmap, ring: u64) -> u16 {
    let index = GuestAddress(ring).checked_add(2);
    // The transport has checked that the ring lies in RAM.
    index
        .and_then(|address| memory.load::<u16>(address, Ordering::Acquire).ok())
        .map_or(0, u16::from_le)
}
