//! A thread that interrupts calls of other threads that wait too long, and ends the program when it cannot end by
//! itself.
//!
//! A frontend can make one call wait: a write to an eventfd (see [`vring_eventfd`](crate::vring_eventfd)). The call has
//! no timeout, but a signal interrupts it.
//!
//! Storage may never answer (a network file system whose server is gone), and then the threads that serve the rings
//! wait for ever. If a termination signal comes and the program does not end within 10 seconds, this thread ends it.

use std::cell::OnceCell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bulkhead_process::confine::Confinement;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::warn;

/// A call is interrupted after once to twice this time.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long the program may take to end after a termination signal.
const END: Duration = Duration::from_secs(10);

/// The threads that have made an interruptible call.
static CALLERS: Mutex<Vec<Weak<Caller>>> = Mutex::new(Vec::new());

thread_local! {
    static CALLER: OnceCell<Arc<Caller>> = const { OnceCell::new() };
}

struct Caller {
    thread: i32,
    /// Counts the begin and the end of each call: odd during a call.
    calls: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes `call`, which fails with EINTR if it takes too long.
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
        // SAFETY: no memory is passed. If the thread has ended, or another thread has its number now, the signal does
        // no harm: its handler does nothing. Neither the standard library nor rustix has a function that signals a
        // thread.
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

/// Installs a handler that does nothing, so that the signal only interrupts. Call this before there are threads.
pub(crate) fn prepare() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: all zeroes is a valid `sigaction`: no flags, so that calls are not restarted, and no signal blocked in
    // the handler, which does nothing. The set is initialised before it is used.
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

/// What the watchdog needs to know of the program.
struct State {
    /// There is no frontend: the main thread only waits for one, or for a signal.
    idle: bool,
    /// The main thread has taken a termination signal.
    ending: bool,
}

static STATE: Mutex<State> = Mutex::new(State {
    idle: true,
    ending: false,
});
static CHANGED: Condvar = Condvar::new();

/// Sets whether the main thread only waits for a frontend or a signal.
pub(crate) fn set_idle(idle: bool) {
    locked(&STATE).idle = idle;
    CHANGED.notify_all();
}

/// Notes that the main thread has taken a termination signal and is ending the program.
pub(crate) fn ending() {
    locked(&STATE).ending = true;
    CHANGED.notify_all();
}

/// Starts the thread, which runs as long as the process. `termination` is readable when a termination signal has come.
pub(crate) fn start(termination: OwnedFd) -> io::Result<()> {
    std::thread::Builder::new()
        .name("watchdog".to_owned())
        .stack_size(64 << 10)
        .spawn(move || {
            // The thread reads nothing from a frontend, so it is safe without this confinement, where the host refuses
            // it.
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

/// Interrupts the calls of `before` that have not ended, and returns the calls that are in progress now.
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

/// Ends the process at once. That is as safe as a kill: the next process repeats the requests that were not completed.
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
