//! The system calls that every Bulkhead program needs once it runs, with the reason for each group.

use super::syscalls::SyscallList;

/// Each group: why, and what.
const ALWAYS: &[(&str, &[libc::c_long])] = &[
    (
        "descriptors that are open already",
        &[
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_readv,
            libc::SYS_writev,
            libc::SYS_close,
            libc::SYS_fstat,
            libc::SYS_lseek,
            libc::SYS_fcntl,
            libc::SYS_dup,
        ],
    ),
    (
        "waiting",
        &[
            libc::SYS_poll,
            libc::SYS_ppoll,
            libc::SYS_epoll_create1,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_wait,
            libc::SYS_epoll_pwait,
            libc::SYS_eventfd2,
            libc::SYS_timerfd_create,
            libc::SYS_timerfd_settime,
            libc::SYS_timerfd_gettime,
            libc::SYS_futex,
            libc::SYS_nanosleep,
            libc::SYS_clock_nanosleep,
            libc::SYS_restart_syscall,
        ],
    ),
    (
        "time and randomness",
        &[
            libc::SYS_clock_gettime,
            libc::SYS_gettimeofday,
            libc::SYS_getrandom,
        ],
    ),
    (
        "memory; never executable, see below",
        &[
            libc::SYS_brk,
            libc::SYS_munmap,
            libc::SYS_mremap,
            libc::SYS_madvise,
        ],
    ),
    (
        "threads: starting, naming, stacks, ending",
        &[
            libc::SYS_gettid,
            libc::SYS_getpid,
            libc::SYS_set_robust_list,
            libc::SYS_rseq,
            libc::SYS_set_tid_address,
            libc::SYS_sched_yield,
            libc::SYS_sched_getaffinity,
            libc::SYS_membarrier,
            libc::SYS_sigaltstack,
            libc::SYS_exit,
            libc::SYS_exit_group,
        ],
    ),
    (
        "signals, among them the one a panic aborts with",
        &[
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
        ],
    ),
    (
        "sockets that are open already",
        &[
            libc::SYS_sendto,
            libc::SYS_recvfrom,
            libc::SYS_sendmsg,
            libc::SYS_recvmsg,
            libc::SYS_shutdown,
        ],
    ),
];

pub(super) fn allow(list: &mut SyscallList) {
    for (_why, numbers) in ALWAYS {
        for &number in *numbers {
            list.always(number);
        }
    }
    // Memory is never executable: no code can be brought in.
    let exec = u64::from(libc::PROT_EXEC.unsigned_abs());
    list.when_masked(libc::SYS_mmap, 2, exec, 0);
    list.when_masked(libc::SYS_mprotect, 2, exec, 0);
    // Threads, but no processes. clone3(2) hides its flags in memory, so it does not exist here and the C library uses clone(2).
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    list.when_masked(libc::SYS_clone, 0, thread, thread);
    list.unavailable(libc::SYS_clone3);
    // A thread's name.
    list.when_equal(
        libc::SYS_prctl,
        0,
        u64::from(libc::PR_SET_NAME.unsigned_abs()),
    );
    // Signals to this process alone: abort(3), and threads that wake each other.
    let own = u64::from(std::process::id());
    list.when_equal(libc::SYS_tgkill, 0, own);
}
