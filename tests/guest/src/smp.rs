//! The other processors: started from real mode, then in ring 3 like the first.

use alloc::boxed::Box;
use core::ptr::{self, copy_nonoverlapping};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::{apic, interrupts, pattern};

/// A page of conventional memory in which neither a firmware nor a monitor keeps anything.
const TRAMPOLINE: usize = 0x9_0000;
const STACK_SIZE: usize = 64 << 10;
const TASK_SEGMENT_SIZE: u64 = 128;
const TASK_SEGMENT_LIMIT: u64 = 0x67;
const AVAILABLE_TASK_SEGMENT: u64 = 0x89 << 40;
const FIRST_TASK_SELECTOR: u32 = 0x40;
/// As many as boot.s has task segments and ring 0 stacks for.
pub(crate) const MAX_PROCESSORS: usize = 8;
/// Time stamp counter ticks after which a processor is given up on: more than half a minute below 4 GHz.
const START_PATIENCE: u64 = 120_000_000_000;

/// `struct cpu_start` of boot.s.
#[repr(C)]
struct Start {
    entry: u64,
    stack: u64,
    ring0_stack: u64,
    task_segment: u32,
    argument: u32,
}

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
    static mut ap_start: *const Start;
    static mut gdt_task_segments: [[u64; 2]; MAX_PROCESSORS];
    static task_segments: u8;
    static ring0_stacks: u8;
}

/// How many processors have arrived in ring 3, the first not counted.
static ARRIVED: AtomicU64 = AtomicU64::new(0);
/// Work that the processors do together.
static SHARED: AtomicU64 = AtomicU64::new(0);
/// How far the others may go on: the amount of work for each.
static GO: AtomicU64 = AtomicU64::new(0);
/// How many have done their work.
static DONE: AtomicU64 = AtomicU64::new(0);

/// The time stamp counter.
pub(crate) fn ticks() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Starts processor number `cpu` (counted from 1) and waits until it is in ring 3.
///
/// # Panics
/// When it does not arrive.
pub(crate) fn start(cpu: usize, apic_id: u8) {
    assert!(
        (1..MAX_PROCESSORS).contains(&cpu),
        "no task segment for processor {cpu}"
    );
    let stack = Box::leak(Box::new([0_u8; STACK_SIZE]))
        .as_mut_ptr_range()
        .end as u64;
    set_task_segment(cpu);
    let start = Box::leak(Box::new(Start {
        entry: processor_main as *const () as u64,
        // As after a call: 8 below a multiple of 16.
        stack: (stack & !15) - 8,
        ring0_stack: &raw const ring0_stacks as u64 + 4096 * (cpu as u64 + 1),
        task_segment: FIRST_TASK_SELECTOR + 16 * cpu as u32,
        argument: cpu as u32,
    }));
    let size = &raw const trampoline_end as usize - &raw const trampoline as usize;
    let before = ARRIVED.load(Ordering::SeqCst);
    // SAFETY: the page below 1 MiB is used for nothing else, and no other processor starts at the same time.
    unsafe {
        copy_nonoverlapping(&raw const trampoline, TRAMPOLINE as *mut u8, size);
        ptr::write_volatile(&raw mut ap_start, start);
    }
    apic::start(apic_id, (TRAMPOLINE >> 12) as u8);
    let since = ticks();
    while ARRIVED.load(Ordering::SeqCst) == before {
        assert!(
            ticks() - since < START_PATIENCE,
            "processor {cpu} with APIC id {apic_id} does not start"
        );
        core::hint::spin_loop();
    }
}

fn set_task_segment(cpu: usize) {
    let base = &raw const task_segments as u64 + TASK_SEGMENT_SIZE * cpu as u64;
    let low = TASK_SEGMENT_LIMIT
        | (base & 0xff_ffff) << 16
        | AVAILABLE_TASK_SEGMENT
        | (base >> 24 & 0xff) << 56;
    // SAFETY: the descriptor of a processor that has not started.
    unsafe { (&raw mut gdt_task_segments[cpu]).write_volatile([low, base >> 32]) }
}

/// Lets all processors, this one included, add `amount` to a shared counter, one by one. Returns what it has come to.
pub(crate) fn count_together(others: u64, amount: u64) -> u64 {
    GO.store(amount, Ordering::SeqCst);
    work(amount);
    while DONE.load(Ordering::SeqCst) < others {
        core::hint::spin_loop();
    }
    SHARED.load(Ordering::SeqCst)
}

fn work(amount: u64) {
    // Some floating-point and vector work as well, so that state lost in a switch between processors is noticed.
    let mut words = [0_u8; 64];
    let mut expected = [0_u8; 64];
    let mut sum = 0.0_f64;
    for step in 0..amount {
        SHARED.fetch_add(1, Ordering::SeqCst);
        sum += 0.5;
        if step % 1024 == 0 {
            pattern::fill(step, 0, &mut words);
            pattern::fill(step, 0, &mut expected);
            assert!(words == expected, "memory differs from itself");
        }
    }
    assert!(
        sum == amount as f64 * 0.5,
        "lost floating-point state: {sum}"
    );
}

/// Where another processor arrives in ring 3.
extern "C" fn processor_main(_cpu: u32) -> ! {
    apic::enable();
    ARRIVED.fetch_add(1, Ordering::SeqCst);
    let amount = loop {
        match GO.load(Ordering::SeqCst) {
            0 => core::hint::spin_loop(),
            amount => break amount,
        }
    };
    work(amount);
    DONE.fetch_add(1, Ordering::SeqCst);
    loop {
        core::hint::spin_loop();
    }
}

/// Interrupts another processor and waits until it has taken the interrupt.
pub(crate) fn interrupt(apic_id: u8) {
    let before = interrupts::count(interrupts::IPI_VECTOR);
    apic::send(apic_id, interrupts::IPI_VECTOR);
    while interrupts::count(interrupts::IPI_VECTOR) == before {
        core::hint::spin_loop();
    }
}
