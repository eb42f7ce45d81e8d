//! Running vCPUs: one thread each, which can be stopped, paused and counted.

use std::cell::Cell;
use std::fmt;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuExit;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::vm::Vcpu;
use crate::{Error, refused};

/// Device models need little stack.
const STACK_SIZE: usize = 256 << 10;

/// Handles the vCPUs' accesses outside RAM. All vCPU threads call it, at the same time.
pub trait Platform: Send + Sync + 'static {
    /// The guest reads a port.
    fn port_read(&self, port: u16, data: &mut [u8]);
    /// The guest writes a port.
    fn port_write(&self, port: u16, data: &[u8]);
    /// The guest reads where no RAM is.
    fn memory_read(&self, address: u64, data: &mut [u8]);
    /// The guest writes where no RAM is.
    fn memory_write(&self, address: u64, data: &[u8]);
    /// A vCPU cannot continue. Its thread ends.
    fn crashed(&self, vcpu: u8, crash: Crash);
}

/// Why a vCPU cannot continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// A triple fault: an exception in the double fault handler.
    TripleFault,
    /// The processor refuses the state the guest is in.
    InvalidState(u64),
    /// KVM cannot continue, most often because of an instruction that it cannot emulate.
    Internal(u32),
    /// `KVM_RUN` returned with an exit reason that is not expected.
    Unexpected(u32),
    /// `KVM_RUN` failed.
    Failed(c_int),
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TripleFault => write!(f, "triple fault"),
            Self::InvalidState(reason) => {
                write!(f, "the processor refuses its state (reason {reason:#x})")
            }
            Self::Internal(reason) => write!(f, "KVM cannot emulate it (reason {reason})"),
            Self::Unexpected(reason) => write!(f, "KVM returned for unexpected reason {reason}"),
            Self::Failed(errno) => write!(
                f,
                "KVM_RUN failed: {}",
                std::io::Error::from_raw_os_error(*errno)
            ),
        }
    }
}

/// How often `KVM_RUN` returned to the monitor, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts {
    /// The guest accessed a port.
    pub io: u64,
    /// The guest accessed memory that is not RAM.
    pub mmio: u64,
    /// The monitor interrupted the vCPU.
    pub interrupted: u64,
    /// Anything else.
    pub other: u64,
}

#[derive(Default)]
struct Counters {
    io: AtomicU64,
    mmio: AtomicU64,
    interrupted: AtomicU64,
    other: AtomicU64,
}

impl Counters {
    fn read(&self) -> ExitCounts {
        ExitCounts {
            io: self.io.load(Ordering::Relaxed),
            mmio: self.mmio.load(Ordering::Relaxed),
            interrupted: self.interrupted.load(Ordering::Relaxed),
            other: self.other.load(Ordering::Relaxed),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Goal {
    Run,
    Pause,
    Stop,
}

struct State {
    goal: Goal,
    /// vCPUs that are executing or about to.
    running: usize,
}

/// What the vCPUs are to do, and how many still run.
struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while the vCPUs are to pause. Returns whether the vCPU is to run.
    fn may_run(&self) -> bool {
        let mut state = self.lock();
        if state.goal == Goal::Pause {
            state.running -= 1;
            self.changed.notify_all();
            while state.goal == Goal::Pause {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.running += 1;
        }
        state.goal == Goal::Run
    }

    fn left(&self) {
        self.lock().running -= 1;
        self.changed.notify_all();
    }
}

/// The vCPUs of a VM, each in a thread of its own. Dropping it stops them.
pub struct Vcpus {
    control: Arc<Control>,
    counters: Vec<Arc<Counters>>,
    threads: Vec<JoinHandle<()>>,
}

impl Vcpus {
    /// Starts every vCPU in a thread of its own, `vcpu0` and so on, paused when `paused`. `enter` is what each thread
    /// does first. When this returns, each has its name and has done that.
    ///
    /// # Errors
    /// When a thread cannot be started, or the handler of the interrupting signal cannot be installed.
    pub fn start(
        vcpus: Vec<Vcpu>,
        platform: &Arc<impl Platform>,
        paused: bool,
        enter: impl Fn() + Copy + Send + 'static,
    ) -> Result<Self, Error> {
        register_signal_handler(SIGRTMIN(), interrupt_run).map_err(refused("a signal"))?;
        let mut all = Self {
            control: Arc::new(Control {
                state: Mutex::new(State {
                    goal: if paused { Goal::Pause } else { Goal::Run },
                    running: 0,
                }),
                changed: Condvar::new(),
            }),
            counters: Vec::new(),
            threads: Vec::new(),
        };
        let (entering, entered) = channel::<()>();
        for vcpu in vcpus {
            let entering = entering.clone();
            let counters = Arc::new(Counters::default());
            let (control, platform) = (all.control.clone(), platform.clone());
            all.counters.push(counters.clone());
            all.control.lock().running += 1;
            let thread = Builder::new()
                .name(format!("vcpu{}", vcpu.index))
                .stack_size(STACK_SIZE)
                .spawn(move || {
                    enter();
                    drop(entering);
                    run(vcpu, &control, &counters, &*platform);
                });
            match thread {
                Ok(thread) => all.threads.push(thread),
                Err(error) => {
                    all.control.left();
                    return Err(Error::Thread(error));
                }
            }
        }
        drop(entering);
        // Nobody sends anything: it fails once the last thread has dropped its sender.
        let _ = entered.recv();
        Ok(all)
    }

    /// How often each vCPU's `KVM_RUN` has returned.
    #[must_use]
    pub fn exit_counts(&self) -> Vec<ExitCounts> {
        self.counters.iter().map(|c| c.read()).collect()
    }

    /// Pauses all vCPUs. None executes once this returns.
    pub fn pause(&self) {
        self.set_goal(Goal::Pause);
    }

    /// Lets paused vCPUs run again.
    pub fn resume(&self) {
        self.control.lock().goal = Goal::Run;
        self.control.changed.notify_all();
    }

    /// Whether the vCPUs are to pause.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.control.lock().goal == Goal::Pause
    }

    /// Makes all vCPUs leave the guest, and waits until they have.
    fn set_goal(&self, goal: Goal) {
        let mut state = self.control.lock();
        state.goal = goal;
        self.control.changed.notify_all();
        for thread in &self.threads {
            // A thread that has ended already needs no signal.
            let _ = thread.kill(SIGRTMIN());
        }
        while state.running > 0 && state.goal == goal {
            state = self
                .control
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.set_goal(Goal::Stop);
        for thread in self.threads.drain(..) {
            // A thread that panicked has printed why. The others are still waited for.
            let _ = thread.join();
        }
    }
}

thread_local! {
    /// The `kvm_run` of this thread's vCPU, for [`interrupt_run`]; null outside of [`run`].
    static KVM_RUN: Cell<*mut kvm_run> = const { Cell::new(null_mut()) };
}

/// The handler of the signal that makes `KVM_RUN` return. A signal that comes just before `KVM_RUN` would have no
/// effect, so the handler sets `immediate_exit`.
extern "C" fn interrupt_run(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let run = KVM_RUN.get();
    if !run.is_null() {
        // SAFETY: `run` points to this thread's own mapping, which outlives the value in KVM_RUN (see `Registered`).
        // The write is volatile because the interrupted code does not know of it.
        unsafe { (&raw mut (*run).immediate_exit).write_volatile(1) };
    }
}

/// While it lives, [`interrupt_run`] has this thread's vCPU.
struct Registered;

impl Registered {
    fn new(vcpu: &mut Vcpu) -> Self {
        KVM_RUN.set(vcpu.fd.get_kvm_run());
        Self
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        KVM_RUN.set(null_mut());
    }
}

fn run(mut vcpu: Vcpu, control: &Control, counters: &Counters, platform: &impl Platform) {
    let index = vcpu.index;
    let outcome = {
        // Dropped before `vcpu`.
        let _registered = Registered::new(&mut vcpu);
        run_until_stopped(&mut vcpu, control, counters, platform)
    };
    drop(vcpu);
    if let Err(crash) = outcome {
        platform.crashed(index, crash);
    }
    control.left();
}

fn run_until_stopped(
    vcpu: &mut Vcpu,
    control: &Control,
    counters: &Counters,
    platform: &impl Platform,
) -> Result<(), Crash> {
    while control.may_run() {
        while let Next::Continue = run_once(vcpu, counters, platform)? {}
    }
    Ok(())
}

enum Next {
    Continue,
    CheckGoal,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn run_once(vcpu: &mut Vcpu, counters: &Counters, platform: &impl Platform) -> Result<Next, Crash> {
    match vcpu.fd.run() {
        Ok(VcpuExit::MmioRead(address, data)) => {
            count(&counters.mmio);
            platform.memory_read(address, data);
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            count(&counters.mmio);
            platform.memory_write(address, data);
        }
        Ok(VcpuExit::IoIn(port, data)) => {
            count(&counters.io);
            let data: *mut [u8] = data;
            let width = port_width(vcpu);
            // SAFETY: `data` is in the mapping of `kvm_run`, which lives as long as `vcpu`; nothing else refers to it.
            for element in unsafe { &mut *data }.chunks_mut(width) {
                platform.port_read(port, element);
            }
        }
        Ok(VcpuExit::IoOut(port, data)) => {
            count(&counters.io);
            let data: *const [u8] = data;
            let width = port_width(vcpu);
            // SAFETY: as above.
            for element in unsafe { &*data }.chunks(width) {
                platform.port_write(port, element);
            }
        }
        Ok(exit) => {
            count(&counters.other);
            return Err(match exit {
                VcpuExit::Shutdown => Crash::TripleFault,
                VcpuExit::FailEntry(reason, _) => Crash::InvalidState(reason),
                VcpuExit::InternalError => Crash::Internal(internal_reason(vcpu)),
                _ => Crash::Unexpected(vcpu.fd.get_kvm_run().exit_reason),
            });
        }
        // EAGAIN: a vCPU that waits for its start-up IPI was woken for another reason.
        Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {
            count(&counters.interrupted);
            vcpu.fd.set_kvm_immediate_exit(0);
            return Ok(Next::CheckGoal);
        }
        Err(error) => return Err(Crash::Failed(error.errno())),
    }
    Ok(Next::Continue)
}

/// The width of the port access for which `KVM_RUN` returned. A string instruction makes several accesses at once.
fn port_width(vcpu: &mut Vcpu) -> usize {
    // SAFETY: the exit reason is KVM_EXIT_IO, for which this is the union's field.
    let io = unsafe { vcpu.fd.get_kvm_run().__bindgen_anon_1.io };
    usize::from(io.size.max(1))
}

fn internal_reason(vcpu: &mut Vcpu) -> u32 {
    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which this is the union's field.
    unsafe { vcpu.fd.get_kvm_run().__bindgen_anon_1.internal }.suberror
}
