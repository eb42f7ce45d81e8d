//! Shared memory that the frontend truncates.
//!
//! Guest memory and the in-flight area are files of the frontend, which it can truncate unless they are sealed, and
//! QEMU, for one, does not seal them. An access beyond the end of a mapped file raises SIGBUS (a system call fails with
//! EFAULT). The handler here maps fresh pages in place of the lost ones, so that the thread goes on, and records that
//! memory [is lost](is_lost). From then on no request is completed, and the frontend is disconnected.

use std::any::Any;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most mappings at a time: all regions of guest memory, twice while they are replaced, and the in-flight areas.
const MAX_MAPPINGS: usize = 2048;

/// The alignment of mappings other than those of huge pages.
const PAGE: usize = 4096;

/// A mapping, as the signal handler needs it. All fields are atomic because a signal handler cannot take a lock.
struct Entry {
    /// 0 if the entry is free.
    start: AtomicUsize,
    end: AtomicUsize,
    /// The size of its pages.
    page: AtomicUsize,
    lost: AtomicBool,
}

static ENTRIES: [Entry; MAX_MAPPINGS] = [const {
    Entry {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        page: AtomicUsize::new(PAGE),
        lost: AtomicBool::new(false),
    }
}; MAX_MAPPINGS];

/// How many mappings have lost memory.
static LOST: AtomicUsize = AtomicUsize::new(0);

/// Keeps each mapping mapped for as long as it has an entry.
static MAPPINGS: Mutex<Vec<(&Entry, Arc<dyn Any + Send + Sync>)>> = Mutex::new(Vec::new());

fn mappings() -> MutexGuard<'static, Vec<(&'static Entry, Arc<dyn Any + Send + Sync>)>> {
    MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The addresses of a mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapped {
    pub(crate) start: *const u8,
    pub(crate) length: usize,
    /// The preferred block size of its file, which is the page size if it is of huge pages.
    pub(crate) block: u64,
}

/// Whether memory that is mapped has been taken away.
pub(crate) fn is_lost() -> bool {
    LOST.load(Ordering::Acquire) != 0
}

/// Has accesses to `mapping` survive truncation of its file. It stays mapped until it is used nowhere else and
/// [`sweep`] is called.
pub(crate) fn watch(mapping: Arc<dyn Any + Send + Sync>, at: Mapped) -> Result<(), String> {
    let mut mappings = mappings();
    sweep_all(&mut mappings);
    let start = at.start.addr();
    let page = usize::try_from(at.block).unwrap_or(PAGE).max(PAGE);
    let end = start + at.length.next_multiple_of(PAGE);
    let free = |entry: &&Entry| entry.start.load(Ordering::Relaxed) == 0;
    let entry = ENTRIES
        .iter()
        .find(free)
        .ok_or("too much memory is mapped")?;
    entry.end.store(end, Ordering::Relaxed);
    entry.page.store(page, Ordering::Relaxed);
    entry.lost.store(false, Ordering::Relaxed);
    entry.start.store(start, Ordering::Release);
    mappings.push((entry, mapping));
    Ok(())
}

/// Unmaps the mappings that are used nowhere else.
pub(crate) fn sweep() {
    sweep_all(&mut mappings());
}

fn sweep_all(mappings: &mut Vec<(&'static Entry, Arc<dyn Any + Send + Sync>)>) {
    mappings.retain(|(entry, mapping)| {
        let used = Arc::strong_count(mapping) > 1;
        if !used {
            // The entry must be free before the memory is unmapped.
            entry.start.store(0, Ordering::Release);
            if entry.lost.swap(false, Ordering::AcqRel) {
                LOST.fetch_sub(1, Ordering::AcqRel);
            }
        }
        used
    });
}

/// Installs the handler. Call this before there are threads.
pub(crate) fn prepare() -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int, *const libc::siginfo_t, *const libc::c_void) = handle;
    // SAFETY: all zeroes is a valid `sigaction`. The handler has the signature that SA_SIGINFO asks for and calls
    // nothing but mmap(2), sigaction(2) and raise(3), all of which it may. The set is initialised before it is used.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGBUS);
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) != 0
            || libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) != 0
    };
    match failed {
        true => Err(io::Error::last_os_error()),
        false => Ok(()),
    }
}

extern "C" fn handle(
    signal: libc::c_int,
    info: *const libc::siginfo_t,
    _context: *const libc::c_void,
) {
    // SAFETY: the kernel gives a valid siginfo_t, and says by a positive code that it is about an address. `errno` is
    // the thread's own and is put back, as what was interrupted may be about to read it.
    unsafe {
        let errno = *libc::__errno_location();
        let is_fault = (*info).si_code > 0;
        if !is_fault || !replace((*info).si_addr().addr()) {
            // The address is in none of the mappings: the process ends as without a handler, here or when the
            // instruction repeats.
            libc::signal(signal, libc::SIG_DFL);
            if !is_fault {
                libc::raise(signal);
            }
        }
        *libc::__errno_location() = errno;
    }
}

/// Maps fresh pages from `address` to the end of the mapping that it is in. Returns `false` if no entry has it.
fn replace(address: usize) -> bool {
    let within = |entry: &&Entry| {
        let start = entry.start.load(Ordering::Acquire);
        start != 0 && (start..entry.end.load(Ordering::Relaxed)).contains(&address)
    };
    let Some(entry) = ENTRIES.iter().find(within) else {
        return false;
    };
    let start = entry.start.load(Ordering::Relaxed);
    let end = entry.end.load(Ordering::Relaxed);
    // Recorded first: a thread that sees the fresh pages sees this as well.
    if !entry.lost.swap(true, Ordering::AcqRel) {
        LOST.fetch_add(1, Ordering::AcqRel);
    }
    // A mapping of huge pages can only be replaced by whole ones.
    [PAGE, entry.page.load(Ordering::Relaxed)]
        .into_iter()
        .any(|page| {
            let from = (address & !(page - 1)).max(start);
            let flags =
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let access = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: the pages replaced are those of a mapping of the frontend's memory, which `MAPPINGS` keeps
            // mapped. No reference to them exists (they are used by volatile access and by the kernel only), and they
            // may change at any time anyway.
            let fresh = unsafe {
                libc::mmap(
                    std::ptr::with_exposed_provenance_mut(from),
                    end - from,
                    access,
                    flags,
                    -1,
                    0,
                )
            };
            fresh != libc::MAP_FAILED
        })
}
