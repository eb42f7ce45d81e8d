//! Memory that the frontend shares and then takes away.
//!
//! Guest memory and the in-flight area are files of the frontend, which it can truncate unless they are sealed; and QEMU, for one,
//! does not seal them. To touch what is mapped beyond the end of a file is a SIGBUS (to the kernel, EFAULT). Instead of ending the
//! process it is answered here with fresh pages, so that whatever was about to touch them goes on; and it is noted that memory
//! [is lost](is_lost), after which no request is completed and the frontend is disconnected.

use std::any::Any;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// As many mappings as may be there at once: all regions of guest memory, twice while they are replaced, and in-flight areas.
const MAX_MAPPINGS: usize = 2048;

/// Alignment of mappings, but for those of huge pages.
const PAGE: usize = 4096;

/// A mapping, for the signal handler: it can take no lock.
struct Place {
    /// 0 if there is none.
    start: AtomicUsize,
    end: AtomicUsize,
    /// The size of its pages.
    page: AtomicUsize,
    lost: AtomicBool,
}

static PLACES: [Place; MAX_MAPPINGS] = [const {
    Place {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        page: AtomicUsize::new(PAGE),
        lost: AtomicBool::new(false),
    }
}; MAX_MAPPINGS];

/// How many mappings have lost memory.
static LOST: AtomicUsize = AtomicUsize::new(0);

/// What keeps the mappings in place until the handler no longer knows them.
static KEPT: Mutex<Vec<(&Place, Arc<dyn Any + Send + Sync>)>> = Mutex::new(Vec::new());

fn kept() -> MutexGuard<'static, Vec<(&'static Place, Arc<dyn Any + Send + Sync>)>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where something is mapped.
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

/// Has `mapping` survive its file's end. It stays mapped until it is used nowhere else and [`sweep`] is called.
pub(crate) fn watch(mapping: Arc<dyn Any + Send + Sync>, at: Mapped) -> Result<(), String> {
    let mut kept = kept();
    sweep_all(&mut kept);
    let start = at.start.addr();
    let page = usize::try_from(at.block).unwrap_or(PAGE).max(PAGE);
    let end = start + at.length.next_multiple_of(PAGE);
    let free = |place: &&Place| place.start.load(Ordering::Relaxed) == 0;
    let place = PLACES
        .iter()
        .find(free)
        .ok_or("too much memory is mapped")?;
    place.end.store(end, Ordering::Relaxed);
    place.page.store(page, Ordering::Relaxed);
    place.lost.store(false, Ordering::Relaxed);
    place.start.store(start, Ordering::Release);
    kept.push((place, mapping));
    Ok(())
}

/// Unmaps what is not used any more.
pub(crate) fn sweep() {
    sweep_all(&mut kept());
}

fn sweep_all(kept: &mut Vec<(&'static Place, Arc<dyn Any + Send + Sync>)>) {
    kept.retain(|(place, mapping)| {
        let used = Arc::strong_count(mapping) > 1;
        if !used {
            // Before it is unmapped.
            place.start.store(0, Ordering::Release);
            if place.lost.swap(false, Ordering::AcqRel) {
                LOST.fetch_sub(1, Ordering::AcqRel);
            }
        }
        used
    });
}

/// Installs the handler. To be called before there are threads.
pub(crate) fn prepare() -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int, *const libc::siginfo_t, *const libc::c_void) = handle;
    // SAFETY: all zeroes is a valid `sigaction`. The handler has the signature that SA_SIGINFO asks for and calls nothing but
    // mmap(2), sigaction(2) and raise(3), all of which it may. The set is initialised before it is used.
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
    // SAFETY: the kernel gives a valid siginfo_t, and says by a positive code that it is about an address. `errno` is the thread's
    // own and is put back, as what was interrupted may be about to read it.
    unsafe {
        let errno = *libc::__errno_location();
        let is_fault = (*info).si_code > 0;
        if !is_fault || !replace((*info).si_addr().addr()) {
            // Not ours: the process ends as it would have without a handler, here or when the instruction is tried again.
            libc::signal(signal, libc::SIG_DFL);
            if !is_fault {
                libc::raise(signal);
            }
        }
        *libc::__errno_location() = errno;
    }
}

/// Puts fresh pages from `address` on to the end of the mapping it is in, if it is in one of ours.
fn replace(address: usize) -> bool {
    let within = |place: &&Place| {
        let start = place.start.load(Ordering::Acquire);
        start != 0 && (start..place.end.load(Ordering::Relaxed)).contains(&address)
    };
    let Some(place) = PLACES.iter().find(within) else {
        return false;
    };
    let start = place.start.load(Ordering::Relaxed);
    let end = place.end.load(Ordering::Relaxed);
    // Noted first: when another thread sees the fresh pages, it sees this, too.
    if !place.lost.swap(true, Ordering::AcqRel) {
        LOST.fetch_add(1, Ordering::AcqRel);
    }
    // A mapping of huge pages can only be replaced by whole ones.
    [PAGE, place.page.load(Ordering::Relaxed)]
        .into_iter()
        .any(|page| {
            let from = (address & !(page - 1)).max(start);
            let flags =
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let access = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: the pages replaced are those of a mapping of the frontend's memory, which `KEPT` keeps in place. No reference to
            // them exists (they are used by volatile access and by the kernel only), and they may change at any time anyway.
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
