//! A thread that ends what waits too long in another one.
//!
//! Of the calls that a frontend can make wait there is one: a write to an eventfd (see [`vring_eventfd`](crate::vring_eventfd)). There is no
//! time-out for it, but a signal ends it.
//!
//! Storage may wait for ever (a network file system whose server is gone), and with it whoever serves the rings. A program that is told
//! to end and cannot, because of that, is ended.

use std::cell::OnceCell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bulkhead_process::confine::Confinement;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::warn;

/// A call lasts as long as this, or twice as long.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long the end of the program may take.
const END: Duration = Duration::from_secs(10);

/// The threads that have made such a call.
static CALLERS: Mutex<Vec<Weak<Caller>>> = Mutex::new(Vec::new());

thread_local! {
    static CALLER: OnceCell<Arc<Caller>> = const { OnceCell::new() };
}

struct Caller {
    thread: i32,
    /// Begins and ends of calls: odd during one.
    calls: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a call that fails with EINTR if it lasts too long.
pub(crate) fn interruptible<R>(call: impl FnOnce() -> R) -> R {
    CALLER.with(|caller| {
        let caller = caller.get_or_init(Caller::new);
        caller.calls.fetch_add(1, Ordering::Relaxed);
        let result = call();
        caller.calls.fetch_add(1, Ordering::Relaxed);
        result
    })
}

impl Caller {
    fn new() -> Arc<Self> {
        let caller = Arc::new(Self {
            thread: rustix::thread::gettid().as_raw_nonzero().get(),
            calls: AtomicU64::new(0),
        });
        let mut callers = locked(&CALLERS);
        callers.retain(|other| other.strong_count() > 0);
        callers.push(Arc::downgrade(&caller));
        caller
    }

    fn interrupt(&self) {
        // SAFETY: no memory is passed. A thread that has ended, or another that has its number now, takes no harm from a signal whose
        // handler does nothing. Neither the standard library nor rustix signals a thread.
        let _ = unsafe {
            libc::syscall(
                libc::SYS_tgkill,
                libc::getpid(),
                self.thread,
                libc::SIGRTMIN(),
            )
        };
    }
}

/// Has the signal do nothing but interrupt. To be called before there are threads.
pub(crate) fn prepare() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: all zeroes is a valid `sigaction`: no flags, so that calls are not restarted, and no signal blocked in the handler, which
    // does nothing. The set is initialised before it is used.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGRTMIN());
        libc::sigaction(libc::SIGRTMIN(), &raw const action, std::ptr::null_mut()) != 0
            || libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) != 0
    };
    match failed {
        true => Err(io::Error::last_os_error()),
        false => Ok(()),
    }
}

/// What the thread is to know.
struct State {
    /// Nobody is served, and the loop only waits for a frontend or a signal.
    idle: bool,
    /// The program was told to end.
    ending: bool,
}

static STATE: Mutex<State> = Mutex::new(State {
    idle: true,
    ending: false,
});
static CHANGED: Condvar = Condvar::new();

/// Says whether the loop only waits for a frontend or a signal.
pub(crate) fn set_idle(idle: bool) {
    locked(&STATE).idle = idle;
    CHANGED.notify_all();
}

/// Says that the program was told to end, and is about to.
pub(crate) fn ending() {
    locked(&STATE).ending = true;
    CHANGED.notify_all();
}

/// Starts the thread, which stays as long as the process. `termination` is readable when the program is told to end.
pub(crate) fn start(termination: OwnedFd) -> io::Result<()> {
    std::thread::Builder::new()
        .name("watchdog".to_owned())
        .stack_size(64 << 10)
        .spawn(move || {
            // It reads no byte of a frontend's; what it may do less than others is not missed where it is refused.
            let _ = Confinement::for_thread().enter_thread();
            watch(&termination);
        })
        .map(drop)
}

fn watch(termination: &OwnedFd) {
    let mut calls = Vec::new();
    let mut since: Option<Instant> = None;
    let mut state = locked(&STATE);
    loop {
        if state.idle && !state.ending {
            state = CHANGED.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let waited = CHANGED.wait_timeout(state, PATIENCE);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        calls = interrupt_long_calls(&calls);
        if !state.ending && !is_readable(termination) {
            since = None;
        } else if since.get_or_insert_with(Instant::now).elapsed() >= END {
            give_up();
        }
    }
}

/// Interrupts the calls that are still those of `before`, and gives those that are under way now.
fn interrupt_long_calls(before: &[(i32, u64)]) -> Vec<(i32, u64)> {
    let callers: Vec<_> = locked(&CALLERS).iter().filter_map(Weak::upgrade).collect();
    let mut now = Vec::new();
    for caller in callers {
        let call = (caller.thread, caller.calls.load(Ordering::Relaxed));
        if call.1.is_multiple_of(2) {
            continue;
        }
        if before.contains(&call) {
            caller.interrupt();
        }
        now.push(call);
    }
    now
}

fn is_readable(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Ends the process as it is. That is as safe as a kill: what was not completed is done again by the next process.
fn give_up() -> ! {
    let seconds = END.as_secs();
    warn(&format!(
        "ended without finishing what is under way: storage has not answered for {seconds} seconds"
    ));
    std::process::exit(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::Errno;

    #[test]
    fn a_call_that_waits_is_ended() {
        prepare().unwrap();
        let full = eventfd(0, EventfdFlags::empty()).unwrap();
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let (never, _end) = rustix::pipe::pipe().unwrap();
        start(never).unwrap();
        set_idle(false);
        for _ in 0..2 {
            let written = interruptible(|| rustix::io::write(&full, &1u64.to_ne_bytes()));
            assert_eq!(written, Err(Errno::INTR));
        }
        set_idle(true);
    }
}
