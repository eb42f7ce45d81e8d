//! Descriptor chains, read and checked once, and then plain data. (virtio 1.2, 2.7.5 "The Virtqueue Descriptor Table")
//!
//! `virtio_queue::DescriptorChain` cannot be used, for two reasons. It is made from the available ring only, where a
//! request that is repeated after a crash no longer is. And it ends silently at a malformed descriptor, which must put
//! the ring out of service.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use crate::error::RingError;

/// The most descriptors of a chain, direct and indirect together: as many as QEMU takes, and as one readv(2) takes.
pub const MAX_CHAIN: usize = 1024;

/// One buffer of guest memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Segment {
    /// The address of its first byte.
    pub address: GuestAddress,
    /// Its length in bytes, never 0.
    pub length: u32,
}

/// A request of the driver: buffers to read, then buffers to write. All were in guest memory when the chain was taken.
///
/// It must go back to its [`Queue`](crate::Queue), by [`complete`](crate::Queue::complete) or by
/// [`give_back`](crate::Queue::give_back).
#[derive(Debug)]
pub struct Chain {
    pub(crate) head: u16,
    /// Whether it comes from the in-flight area, and not from the available ring.
    pub(crate) resubmitted: bool,
    pub(crate) segments: Vec<Segment>,
    pub(crate) readable: usize,
}

impl Chain {
    /// The buffers that the device may read.
    #[must_use]
    pub fn readable(&self) -> Buffers<'_> {
        Buffers(self.segments.get(..self.readable).unwrap_or_default())
    }

    /// The buffers that the device may write.
    #[must_use]
    pub fn writable(&self) -> Buffers<'_> {
        Buffers(self.segments.get(self.readable..).unwrap_or_default())
    }
}

/// Some buffers of a chain, as one sequence of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'a>(&'a [Segment]);

impl<'a> Buffers<'a> {
    /// The buffers one by one.
    #[must_use]
    pub fn segments(&self) -> &'a [Segment] {
        self.0
    }

    /// How many bytes there are: less than 2^32 in a chain.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.0
            .iter()
            .fold(0, |sum, segment| sum.saturating_add(segment.length))
    }

    /// The slices of guest memory that hold `length` bytes from `offset` on, for a system call or to copy from and to.
    ///
    /// # Errors
    /// When there are fewer bytes, or they are not in guest memory.
    pub fn slices<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        offset: u32,
        length: u32,
    ) -> Result<Vec<VolatileSlice<'m>>, RingError> {
        let mut slices = Vec::with_capacity(self.0.len());
        self.each_part(offset, length, |address, length| {
            for slice in GuestMemoryBackend::get_slices(memory, address, length as usize) {
                slices.push(slice.map_err(|_| RingError::OutsideMemory)?);
            }
            Ok(())
        })?;
        Ok(slices)
    }

    /// The `length` bytes from `offset` on, as buffers of their own.
    ///
    /// # Errors
    /// When there are fewer bytes.
    pub fn part(&self, offset: u32, length: u32) -> Result<Vec<Segment>, RingError> {
        let mut part = Vec::with_capacity(self.0.len());
        self.each_part(offset, length, |address, length| {
            part.push(Segment { address, length });
            Ok(())
        })?;
        Ok(part)
    }

    /// Copies `into.len()` bytes from `offset` on out of guest memory.
    ///
    /// # Errors
    /// When there are fewer bytes, or they are not in guest memory.
    pub fn read(
        &self,
        memory: &GuestMemoryMmap,
        offset: u32,
        into: &mut [u8],
    ) -> Result<(), RingError> {
        let length = u32::try_from(into.len()).map_err(|_| RingError::OutsideMemory)?;
        let mut rest = into;
        self.each_part(offset, length, |address, length| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(length as usize);
            rest = after;
            memory
                .read_slice(part, address)
                .map_err(|_| RingError::OutsideMemory)
        })
    }

    /// Copies `from` into guest memory from `offset` on.
    ///
    /// # Errors
    /// When there are fewer bytes, or they are not in guest memory.
    pub fn write(
        &self,
        memory: &GuestMemoryMmap,
        offset: u32,
        from: &[u8],
    ) -> Result<(), RingError> {
        let length = u32::try_from(from.len()).map_err(|_| RingError::OutsideMemory)?;
        let mut rest = from;
        self.each_part(offset, length, |address, length| {
            let (part, after) = rest.split_at(length as usize);
            rest = after;
            memory
                .write_slice(part, address)
                .map_err(|_| RingError::OutsideMemory)
        })
    }

    /// Calls `visit` with each piece of `length` bytes from `offset` on.
    fn each_part(
        &self,
        offset: u32,
        length: u32,
        mut visit: impl FnMut(GuestAddress, u32) -> Result<(), RingError>,
    ) -> Result<(), RingError> {
        let mut skip = offset;
        let mut left = length;
        for segment in self.0 {
            if left == 0 {
                break;
            }
            if skip >= segment.length {
                skip -= segment.length;
                continue;
            }
            let part = left.min(segment.length - skip);
            let address = segment
                .address
                .checked_add(u64::from(skip))
                .ok_or(RingError::OutsideMemory)?;
            visit(address, part)?;
            skip = 0;
            left -= part;
        }
        if left == 0 {
            Ok(())
        } else {
            Err(RingError::OutsideMemory)
        }
    }
}

/// A table of descriptors in guest memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) address: GuestAddress,
    pub(crate) entries: u16,
}

impl Table {
    fn get(&self, memory: &GuestMemoryMmap, index: u16) -> Result<Descriptor, RingError> {
        if index >= self.entries {
            return Err(RingError::DescriptorIndex(index));
        }
        let address = self
            .address
            .checked_add(u64::from(index) * size_of::<Descriptor>() as u64)
            .ok_or(RingError::OutsideMemory)?;
        memory
            .read_obj(address)
            .map_err(|_| RingError::OutsideMemory)
    }

    /// The indirect table that `descriptor` refers to. Its chain starts at its first entry.
    fn indirect(descriptor: &Descriptor) -> Result<Self, RingError> {
        let size = size_of::<Descriptor>() as u32;
        let entries = u16::try_from(descriptor.len() / size).map_err(|_| RingError::Indirect)?;
        if entries == 0 || !descriptor.len().is_multiple_of(size) || descriptor.has_next() {
            return Err(RingError::Indirect);
        }
        Ok(Self {
            address: descriptor.addr(),
            entries,
        })
    }
}

/// Reads the chain that starts at `head` into `segments`, and returns how many of them are readable. Each descriptor is
/// read once, so that later changes by the driver have no effect.
pub(crate) fn walk(
    memory: &GuestMemoryMmap,
    table: Table,
    head: u16,
    segments: &mut Vec<Segment>,
) -> Result<usize, RingError> {
    segments.clear();
    let (mut table, mut index, mut nested) = (table, head, false);
    let mut readable = 0;
    let mut total = 0u32;
    loop {
        let descriptor = table.get(memory, index)?;
        if descriptor.refers_to_indirect_table() {
            if std::mem::replace(&mut nested, true) {
                return Err(RingError::Indirect);
            }
            (table, index) = (Table::indirect(&descriptor)?, 0);
            continue;
        }
        if segments.len() == MAX_CHAIN {
            return Err(RingError::ChainTooLong);
        }
        let segment = checked_segment(memory, &descriptor)?;
        // (virtio 1.2, 2.7.5.2) No chain is longer than 2^32 bytes.
        total = total
            .checked_add(segment.length)
            .ok_or(RingError::ChainTooLong)?;
        if !descriptor.is_write_only() {
            if readable < segments.len() {
                return Err(RingError::DescriptorOrder);
            }
            readable += 1;
        }
        segments.push(segment);
        if !descriptor.has_next() {
            return Ok(readable);
        }
        index = descriptor.next();
    }
}

fn checked_segment(
    memory: &GuestMemoryMmap,
    descriptor: &Descriptor,
) -> Result<Segment, RingError> {
    if descriptor.len() == 0 {
        return Err(RingError::EmptyDescriptor);
    }
    let (address, length) = (descriptor.addr(), descriptor.len());
    if !GuestMemoryBackend::check_range(memory, address, length as usize) {
        return Err(RingError::OutsideMemory);
    }
    Ok(Segment { address, length })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    const MEMORY: usize = 0x1_0000;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
    }

    /// Address, length, flags, next.
    type Raw = (u64, u32, u16, u16);

    fn put(memory: &GuestMemoryMmap, table: u64, descriptors: &[Raw]) -> Table {
        for (index, &(address, length, flags, next)) in descriptors.iter().enumerate() {
            memory
                .write_obj(
                    Descriptor::new(address, length, flags, next),
                    GuestAddress(table + 16 * index as u64),
                )
                .unwrap();
        }
        Table {
            address: GuestAddress(table),
            entries: descriptors.len() as u16,
        }
    }

    fn walked(descriptors: &[Raw]) -> Result<(usize, Vec<Segment>), RingError> {
        let memory = memory();
        let table = put(&memory, 0, descriptors);
        let mut segments = Vec::new();
        walk(&memory, table, 0, &mut segments).map(|readable| (readable, segments))
    }

    #[test]
    fn readable_buffers_come_before_writable_ones() {
        let (readable, segments) = walked(&[
            (0x1000, 16, NEXT, 2),
            (0x3000, 1, WRITE, 0),
            (0x2000, 512, NEXT | WRITE, 1),
        ])
        .unwrap();

        assert_eq!(readable, 1);
        let lengths: Vec<u32> = segments.iter().map(|segment| segment.length).collect();
        assert_eq!(lengths, [16, 512, 1]);
    }

    #[test]
    fn an_indirect_table_takes_the_place_of_its_descriptor() {
        let memory = memory();
        let table = put(
            &memory,
            0,
            &[(0x1000, 16, NEXT, 1), (0x800, 32, INDIRECT, 0)],
        );
        put(
            &memory,
            0x800,
            &[(0x2000, 8, NEXT | WRITE, 1), (0x3000, 1, WRITE, 0)],
        );
        let mut segments = Vec::new();

        assert_eq!(walk(&memory, table, 0, &mut segments), Ok(1));
        assert_eq!(segments.len(), 3);
    }

    #[test]
    fn malformed_chains_are_refused_by_name() {
        let cases: &[(&[Raw], RingError)] = &[
            (&[(0, 1, NEXT, 0)], RingError::ChainTooLong),
            (&[(0, 1, NEXT, 7)], RingError::DescriptorIndex(7)),
            (&[(0, 0, 0, 0)], RingError::EmptyDescriptor),
            (&[(MEMORY as u64, 1, 0, 0)], RingError::OutsideMemory),
            (&[(MEMORY as u64 - 1, 2, 0, 0)], RingError::OutsideMemory),
            (&[(u64::MAX, 2, 0, 0)], RingError::OutsideMemory),
            (
                &[(0, 1, NEXT | WRITE, 1), (0, 1, 0, 0)],
                RingError::DescriptorOrder,
            ),
            (&[(0, 16, INDIRECT | NEXT, 0)], RingError::Indirect),
            (&[(0, 17, INDIRECT, 0)], RingError::Indirect),
            (&[(0, 0, INDIRECT, 0)], RingError::Indirect),
            // The table is its own only entry.
            (&[(0, 16, INDIRECT, 0)], RingError::Indirect),
            (
                &[(u64::MAX - 15, 16, INDIRECT, 0)],
                RingError::OutsideMemory,
            ),
        ];
        for (descriptors, error) in cases {
            assert_eq!(walked(descriptors).unwrap_err(), *error, "{descriptors:?}");
        }
    }

    #[test]
    fn buffers_are_one_run_of_bytes() {
        let memory = memory();
        let segments = [
            Segment {
                address: GuestAddress(0x100),
                length: 3,
            },
            Segment {
                address: GuestAddress(0x200),
                length: 4,
            },
        ];
        let buffers = Buffers(&segments);

        buffers.write(&memory, 1, b"abcde").unwrap();

        let mut back = [0; 4];
        buffers.read(&memory, 2, &mut back).unwrap();
        assert_eq!(&back, b"bcde".as_slice());
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x200)).unwrap(), b'c');
        assert_eq!(buffers.length(), 7);
        assert!(buffers.read(&memory, 4, &mut back).is_err());
        let slices = buffers.slices(&memory, 1, 5).unwrap();
        let lengths: Vec<usize> = slices.iter().map(VolatileSlice::len).collect();
        assert_eq!(lengths, [2, 3]);
    }

    proptest! {
        #[test]
        fn whatever_is_in_memory_the_walk_ends_inside_it(
            bytes in proptest::collection::vec(any::<u8>(), 512),
            head in any::<u16>(),
        ) {
            let memory = memory();
            memory.write_slice(&bytes, GuestAddress(0)).unwrap();
            let table = Table { address: GuestAddress(0), entries: 32 };
            let mut segments = Vec::new();
            if let Ok(readable) = walk(&memory, table, head, &mut segments) {
                prop_assert!(readable <= segments.len() && segments.len() <= MAX_CHAIN);
                for segment in segments {
                    let end = segment.address.0 + u64::from(segment.length);
                    prop_assert!(end <= MEMORY as u64);
                }
            }
        }
    }
}
