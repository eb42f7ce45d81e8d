//! The heap, memory shared with devices, the mapping of high device memory, and the C memory functions.

use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::arch::asm;
use core::ptr::{NonNull, read_volatile, write_volatile};

use linked_list_allocator::LockedHeap;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

const HEAP_SIZE: usize = 8 << 20;
const LARGE_PAGE: u64 = 2 << 20;
const FOUR_GIB: u64 = 4 << 30;
const PRESENT_WRITABLE_USER: u64 = 7;
const LARGE_PAGE_FLAGS: u64 = 0xe7;
const ENTRY_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

#[repr(align(4096))]
struct HeapMemory(#[expect(dead_code, reason = "used through its address")] [u8; HEAP_SIZE]);

static mut HEAP_MEMORY: HeapMemory = HeapMemory([0; HEAP_SIZE]);

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

unsafe extern "C" {
    static mut page_map: [u64; 512];
}

/// Gives the heap its memory.
pub(crate) fn init() {
    // SAFETY: called once, first of all; nothing else uses HEAP_MEMORY.
    unsafe { HEAP.lock().init((&raw mut HEAP_MEMORY).cast(), HEAP_SIZE) }
}

/// Maps device memory one to one, as far as the start-up code has not (above 4 GiB), and returns its address.
pub(crate) fn map_device(address: u64, size: u64) -> *mut u8 {
    let mut page = address & !(LARGE_PAGE - 1);
    while page < address + size {
        if page >= FOUR_GIB {
            map_large_page(page);
        }
        page += LARGE_PAGE;
    }
    address as *mut u8
}

fn map_large_page(page: u64) {
    let map = (&raw mut page_map).cast::<u64>();
    let pointers = next_table(map, page >> 39 & 511);
    let directory = next_table(pointers, page >> 30 & 511);
    let index = (page >> 21 & 511) as usize;
    // SAFETY: `directory` is a page directory, and the entry of a page not mapped until now is not in use by anything.
    unsafe { write_volatile(directory.add(index), page | LARGE_PAGE_FLAGS) }
}

fn next_table(table: *mut u64, index: u64) -> *mut u64 {
    // SAFETY: `table` is a page table, `index` below 512. A new table is all zero, so nothing is mapped by it yet.
    unsafe {
        let entry = table.add(index as usize);
        if read_volatile(entry) & 1 == 0 {
            let (address, _) = GuestHal::dma_alloc(1, BufferDirection::Both);
            write_volatile(entry, address | PRESENT_WRITABLE_USER);
        }
        (read_volatile(entry) & ENTRY_ADDRESS) as *mut u64
    }
}

/// Reads device memory.
///
/// # Safety
/// `address` is mapped and aligned device or ordinary memory.
pub(crate) unsafe fn read_u32(address: *const u8) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { read_volatile(address.cast()) }
}

/// Writes device memory.
///
/// # Safety
/// `address` is mapped and aligned device memory, and the device may be told this.
pub(crate) unsafe fn write_u32(address: *mut u8, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { write_volatile(address.cast(), value) }
}

/// Reads device memory that need not be aligned.
///
/// # Safety
/// `address` is mapped device memory.
pub(crate) unsafe fn read<T: Copy>(address: u64) -> T {
    // SAFETY: the caller's promise; a type without alignment of its own.
    unsafe { read_volatile(address as *const Unaligned<T>) }.0
}

/// Writes device memory that need not be aligned.
///
/// # Safety
/// `address` is mapped device memory, and the device may be told this.
pub(crate) unsafe fn write<T: Copy>(address: u64, value: T) {
    // SAFETY: the caller's promise; a type without alignment of its own.
    unsafe { write_volatile(address as *mut Unaligned<T>, Unaligned(value)) }
}

#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

/// Memory shared with devices: all memory is mapped one to one and may be used by any device.
pub(crate) struct GuestHal;

fn pages_layout(pages: usize) -> Layout {
    match Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE) {
        Ok(layout) => layout,
        Err(_) => panic!("{pages} pages are too many"),
    }
}

// SAFETY: memory comes from the heap, page-aligned and zeroed, and belongs to the caller until given back; physical and
// virtual addresses are the same.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: the layout is not empty: virtio-drivers and this program ask for at least one page.
        let memory = unsafe { alloc_zeroed(pages_layout(pages)) };
        match NonNull::new(memory) {
            Some(memory) => (memory.as_ptr() as PhysAddr, memory),
            None => panic!("out of memory"),
        }
    }

    unsafe fn dma_dealloc(_: PhysAddr, memory: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller promises that it comes from `dma_alloc` with as many pages.
        unsafe { dealloc(memory.as_ptr(), pages_layout(pages)) }
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, size: usize) -> NonNull<u8> {
        match NonNull::new(map_device(address, size as u64)) {
            Some(memory) => memory,
            None => panic!("device memory at address 0"),
        }
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.as_ptr().cast::<u8>() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// The C library's `memcpy`, which the compiler calls.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, size: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep movsb", inout("rcx") size => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags));
    }
    to
}

/// The C library's `memmove`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, size: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= size {
        // SAFETY: the caller's promise; a forward copy is right when `to` is not inside the source.
        return unsafe { memcpy(to, from, size) };
    }
    // SAFETY: the caller's promise; backwards, and the direction flag is as it was afterwards.
    unsafe {
        asm!(
            "std", "rep movsb", "cld",
            inout("rcx") size => _,
            inout("rdi") to.wrapping_add(size).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(size).wrapping_sub(1) => _,
            options(nostack),
        );
    }
    to
}

/// The C library's `memset`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, size: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep stosb", inout("rcx") size => _, inout("rdi") to => _, in("al") value as u8, options(nostack, preserves_flags));
    }
    to
}

/// The C library's `memcmp`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, size: usize) -> i32 {
    for index in 0..size {
        // SAFETY: the caller's promise. Volatile, or the compiler would make this loop a call of itself.
        let (l, r) = unsafe {
            (
                read_volatile(left.add(index)),
                read_volatile(right.add(index)),
            )
        };
        if l != r {
            return i32::from(l) - i32::from(r);
        }
    }
    0
}

/// The C library's `bcmp`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, size: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(left, right, size) }
}

/// The C library's `strlen`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller's promise. Volatile, or the compiler would make this loop a call of itself.
    while unsafe { read_volatile(text.add(length)) } != 0 {
        length += 1;
    }
    length
}
