//! The system calls that every Bulkhead program needs once it runs, with the reason for each group.

use super::syscalls::{Must, SyscallList, equal, masked, null};

/// A reason, and the calls.
type Group = (&'static str, &'static [libc::c_long]);

/// What a thread needs that only computes and does I/O.
const THREAD: &[Group] = &[
    (
        "descriptors that are open already",
        &[
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_readv,
            libc::SYS_writev,
            libc::SYS_pwritev2,
            libc::SYS_close,
            libc::SYS_fstat,
            libc::SYS_lseek,
        ],
    ),
    (
        "waiting",
        &[
            libc::SYS_poll,
            libc::SYS_ppoll,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_wait,
            libc::SYS_epoll_pwait,
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
        "memory; the rest of it by argument, see below",
        &[libc::SYS_brk, libc::SYS_munmap, libc::SYS_mremap],
    ),
    (
        "threads: names, stacks, ending",
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
        "who one is; these calls cannot fail, and some callers do not look",
        &[
            libc::SYS_getuid,
            libc::SYS_geteuid,
            libc::SYS_getgid,
            libc::SYS_getegid,
            libc::SYS_getppid,
            libc::SYS_getpgrp,
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
];

/// What a program needs in addition.
const PROGRAM: &[Group] = &[
    (
        "descriptors made of others",
        &[
            libc::SYS_dup,
            libc::SYS_epoll_create1,
            libc::SYS_eventfd2,
            libc::SYS_timerfd_create,
        ],
    ),
    (
        "sockets that are open already",
        &[
            libc::SYS_recvfrom,
            libc::SYS_sendmsg,
            libc::SYS_recvmsg,
            libc::SYS_shutdown,
        ],
    ),
];

/// `fcntl` with these does nothing but to descriptors of one's own. Not among them: F_SETOWN and F_SETSIG, by which the
/// kernel sends a signal to any process of the same user, leases and F_NOTIFY, which do so too, and locks.
const FCNTLS: &[libc::c_int] = &[
    libc::F_GETFL,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_DUPFD_CLOEXEC,
];

/// Advice on memory of one's own. Not among it: offlining it or poisoning it, and merging it with other processes'.
const ADVICE: &[libc::c_int] = &[
    libc::MADV_NORMAL,
    libc::MADV_RANDOM,
    libc::MADV_SEQUENTIAL,
    libc::MADV_WILLNEED,
    libc::MADV_DONTNEED,
    libc::MADV_FREE,
    libc::MADV_DONTFORK,
    libc::MADV_DONTDUMP,
    libc::MADV_HUGEPAGE,
    libc::MADV_NOHUGEPAGE,
];

/// What pthread_create(3) gives clone(2): a thread, and nothing that is a process or has a namespace. musl adds
/// CLONE_DETACHED.
const THREAD_FLAGS: libc::c_int = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;

/// The least: for a thread that starts no thread and opens nothing.
pub(super) fn allow_thread(list: &mut SyscallList) {
    allow_groups(list, THREAD);
    // Memory is never executable, and not a file: no code can be brought in.
    let exec = number(libc::PROT_EXEC);
    let anonymous = number(libc::MAP_ANONYMOUS);
    list.when(
        libc::SYS_mmap,
        &[masked(2, exec, 0), masked(3, anonymous, anonymous)],
    );
    list.when(libc::SYS_mprotect, &[masked(2, exec, 0)]);
    for &advice in ADVICE {
        list.when(libc::SYS_madvise, &[equal(2, number(advice))]);
    }
    // A thread's name.
    list.when(libc::SYS_prctl, &[equal(0, number(libc::PR_SET_NAME))]);
    // Signals to this process alone: abort(3), and threads that wake each other.
    let own = u64::from(std::process::id());
    list.when(libc::SYS_tgkill, &[equal(0, own)]);
    // clone3(2) hides its flags in memory, so it does not exist here and the C library uses clone(2).
    list.unavailable(libc::SYS_clone3);
}

pub(super) fn allow(list: &mut SyscallList) {
    allow_thread(list);
    allow_groups(list, PROGRAM);
    for &command in FCNTLS {
        allow_fcntl(list, command);
    }
    // Whether a descriptor blocks; not that the kernel sends signals for it.
    list.when(
        libc::SYS_fcntl,
        &[
            equal(1, number(libc::F_SETFL)),
            masked(2, number(libc::O_ASYNC), 0),
        ],
    );
    // A datagram to whom the socket is connected to, and to no other address.
    list.when(libc::SYS_sendto, &[null(4)]);
    let all_but_detached = !0x40_0000 & 0xffff_ffff;
    list.when(
        libc::SYS_clone,
        &[masked(0, all_but_detached, number(THREAD_FLAGS))],
    );
    // A filter for one thread more: it can only take away.
    let filter = u64::from(libc::SECCOMP_SET_MODE_FILTER);
    list.when(libc::SYS_seccomp, &[equal(0, filter), equal(1, 0)]);
}

/// What it takes to go from the first stage to the last: to count threads, to restrict oneself further, and to give up
/// capabilities.
pub(super) fn allow_finishing(list: &mut SyscallList) {
    let filter = u64::from(libc::SECCOMP_SET_MODE_FILTER);
    list.when(libc::SYS_seccomp, &[equal(0, filter)]);
    list.always(libc::SYS_landlock_restrict_self);
    list.always(libc::SYS_capget);
    list.always(libc::SYS_capset);
    list.when(libc::SYS_unshare, &[equal(0, number(libc::CLONE_THREAD))]);
}

pub(super) fn allow_fcntl(list: &mut SyscallList, command: libc::c_int) {
    list.when(libc::SYS_fcntl, &[equal(1, number(command))]);
}

/// Files may be mapped, too; never executable.
pub(super) fn allow_file_mappings(list: &mut SyscallList) {
    list.when(libc::SYS_mmap, &[masked(2, number(libc::PROT_EXEC), 0)]);
}

/// Pairs of connected stream sockets. One of datagram sockets could send to any socket that has a path.
pub(super) fn allow_socket_pairs(list: &mut SyscallList) {
    let kind: Must = masked(1, 0xf, number(libc::SOCK_STREAM));
    list.when(
        libc::SYS_socketpair,
        &[equal(0, number(libc::AF_UNIX)), kind],
    );
}

fn allow_groups(list: &mut SyscallList, groups: &[Group]) {
    for (_why, numbers) in groups {
        for &number in *numbers {
            list.always(number);
        }
    }
}

/// An argument as the kernel sees it.
fn number(value: libc::c_int) -> u64 {
    u64::from(value.cast_unsigned())
}
