//! The system calls that dnsmasq and the processes that start it may use. A filter is inherited, so each process is
//! also allowed what the processes that it starts need. Any other call fails with EPERM.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

type Rules = BTreeMap<libc::c_long, Vec<SeccompRule>>;

/// dnsmasq 2.90, its C library and its loader.
const DNSMASQ: &[libc::c_long] = &[
    // Starting, and the answer to a query by TCP, for which it forks.
    libc::SYS_execve,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_arch_prctl,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_prlimit64,
    libc::SYS_futex,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_alarm,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    // Becoming its own user.
    libc::SYS_setgroups,
    libc::SYS_setgid,
    libc::SYS_setuid,
    libc::SYS_capget,
    // Files: the leases, and the list of the host's DNS servers.
    libc::SYS_access,
    libc::SYS_chdir,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readlink,
    libc::SYS_umask,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting, time, signals.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_nanosleep,
    libc::SYS_pipe,
    libc::SYS_pipe2,
    libc::SYS_poll,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    // Sockets; `sockets` limits their families.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// Asking about interfaces, and whether a file is a terminal.
const IOCTLS: &[libc::c_ulong] = &[
    libc::SIOCGIFNAME,
    libc::SIOCGIFFLAGS,
    libc::SIOCGIFMTU,
    libc::SIOCGIFADDR,
    libc::TCGETS,
];

/// Starting this program, and starting another with another user, other limits and Landlock.
const INIT: &[libc::c_long] = &[
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_capset,
    libc::SYS_dup3,
    libc::SYS_gettid,
    libc::SYS_kill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pwrite64,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_seccomp,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_sigaltstack,
    libc::SYS_socketpair,
    libc::SYS_statx,
    libc::SYS_tgkill,
    libc::SYS_waitid,
];

/// Creating namespaces for init, and duplicating the lock file's descriptor.
const SUPERVISOR: &[libc::c_long] = &[libc::SYS_pidfd_getfd, libc::SYS_setns, libc::SYS_unshare];

pub(super) fn confine_supervisor() -> io::Result<()> {
    confine(&[DNSMASQ, INIT, SUPERVISOR])
}

pub(super) fn confine_init() -> io::Result<()> {
    confine(&[DNSMASQ, INIT])
}

/// Confines the process that executes dnsmasq. dnsmasq would keep CAP_NET_ADMIN when it becomes its own user, by
/// prctl(PR_SET_KEEPCAPS) and capset. Both return success here and do nothing, so that dnsmasq loses all capabilities
/// and does not notice.
pub(super) fn confine_dnsmasq() -> io::Result<()> {
    let keep = vec![rule(&[(
        0,
        SeccompCmpOp::Eq,
        libc::PR_SET_KEEPCAPS as u64,
    )])?];
    let ignored = BTreeMap::from([(libc::SYS_capset, Vec::new()), (libc::SYS_prctl, keep)]);
    let success = SeccompAction::Errno(0);
    apply(&filter(ignored, SeccompAction::Allow, success)?)?;
    confine(&[DNSMASQ, &[libc::SYS_prctl, libc::SYS_capset]])
}

fn confine(lists: &[&[libc::c_long]]) -> io::Result<()> {
    let mut rules: Rules = lists
        .concat()
        .into_iter()
        .map(|call| (call, Vec::new()))
        .collect();
    let requests = IOCTLS
        .iter()
        .map(|&request| rule(&[(1, SeccompCmpOp::Eq, request)]));
    rules.insert(libc::SYS_ioctl, requests.collect::<io::Result<_>>()?);
    rules.insert(libc::SYS_socket, sockets()?);
    // No namespaces. A filter cannot read the flags of clone3(2), so that fails with ENOSYS, and the C library uses
    // clone(2).
    const NAMESPACES: u64 = (libc::CLONE_NEWNS
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP) as u64;
    let plain = rule(&[(0, SeccompCmpOp::MaskedEq(NAMESPACES), 0)])?;
    rules.insert(libc::SYS_clone, vec![plain]);
    rules.insert(libc::SYS_clone3, Vec::new());
    let absent = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let no_such_call = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    apply(&filter(absent, SeccompAction::Allow, no_such_call)?)?;
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    apply(&filter(rules, refused, SeccompAction::Allow)?)
}

/// Allows stream and datagram sockets of IPv4 and IPv6, and netlink's routing family to read interfaces; changing them
/// needs a capability.
fn sockets() -> io::Result<Vec<SeccompRule>> {
    const TYPE: u64 = 0xf;
    let mut rules = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            rules.push(rule(&[
                (0, SeccompCmpOp::Eq, family as u64),
                (1, SeccompCmpOp::MaskedEq(TYPE), kind as u64),
            ])?);
        }
    }
    rules.push(rule(&[
        (0, SeccompCmpOp::Eq, libc::AF_NETLINK as u64),
        (2, SeccompCmpOp::Eq, libc::NETLINK_ROUTE as u64),
    ])?);
    Ok(rules)
}

fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> io::Result<SeccompRule> {
    let condition = |(argument, operator, value): &(u8, SeccompCmpOp, u64)| {
        SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator.clone(), *value)
    };
    let conditions: Result<_, _> = conditions.iter().map(condition).collect();
    conditions
        .and_then(SeccompRule::new)
        .map_err(io::Error::other)
}

fn filter(
    rules: Rules,
    otherwise: SeccompAction,
    on_match: SeccompAction,
) -> io::Result<BpfProgram> {
    SeccompFilter::new(rules, otherwise, on_match, TargetArch::x86_64)
        .and_then(TryInto::try_into)
        .map_err(io::Error::other)
}

fn apply(program: &BpfProgram) -> io::Result<()> {
    apply_filter(program).map_err(io::Error::other)
}
