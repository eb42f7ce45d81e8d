//! The allow-list of system calls, as seccomp filters.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::ConfineError;

/// What an argument must be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Must {
    argument: u8,
    mask: Option<u64>,
    value: u64,
    length: Length,
}

/// How much of an argument is looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Length {
    /// The kernel looks at an `int` too.
    Int,
    /// All of it: a pointer.
    Pointer,
}

/// The argument is this number.
pub(super) fn equal(argument: u8, value: u64) -> Must {
    Must {
        argument,
        mask: None,
        value,
        length: Length::Int,
    }
}

/// The argument's bits under the mask are these.
pub(super) fn masked(argument: u8, mask: u64, value: u64) -> Must {
    Must {
        mask: Some(mask),
        ..equal(argument, value)
    }
}

/// The argument is a null pointer.
pub(super) fn null(argument: u8) -> Must {
    Must {
        length: Length::Pointer,
        ..equal(argument, 0)
    }
}

/// System calls that are allowed: always (no alternative), or when all that one of the alternatives asks for holds.
#[derive(Clone, Debug, Default)]
pub(super) struct SyscallList {
    allowed: BTreeMap<libc::c_long, Vec<Vec<Must>>>,
    unavailable: Vec<libc::c_long>,
}

impl SyscallList {
    pub(super) fn always(&mut self, number: libc::c_long) {
        self.allowed.insert(number, Vec::new());
    }

    pub(super) fn when(&mut self, number: libc::c_long, all: &[Must]) {
        match self.allowed.get_mut(&number) {
            // Allowed always already.
            Some(alternatives) if alternatives.is_empty() => {}
            Some(alternatives) if alternatives.iter().any(|one| one == all) => {}
            Some(alternatives) => alternatives.push(all.to_vec()),
            None => {
                self.allowed.insert(number, vec![all.to_vec()]);
            }
        }
    }

    /// Allows what `other` allows, too.
    pub(super) fn add(&mut self, other: &Self) {
        for (&number, alternatives) in &other.allowed {
            if alternatives.is_empty() {
                self.always(number);
            }
            for all in alternatives {
                self.when(number, all);
            }
        }
    }

    /// The call fails with ENOSYS, as on a kernel that has not got it.
    pub(super) fn unavailable(&mut self, number: libc::c_long) {
        self.unavailable.push(number);
    }

    pub(super) fn compile(self) -> Result<Filters, ConfineError> {
        let missing = self
            .unavailable
            .iter()
            .map(|&number| (number, Vec::new()))
            .collect();
        let absent = filter(
            missing,
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        )?;
        let mut rules = BTreeMap::new();
        for (number, alternatives) in self.allowed {
            let alternatives = alternatives
                .iter()
                .map(|all| rule(all))
                .collect::<Result<Vec<_>, _>>()
                .map_err(refused)?;
            rules.insert(number, alternatives);
        }
        // The first filter decides what the second lets through.
        for number in self.unavailable {
            rules.insert(number, Vec::new());
        }
        let listed = filter(
            rules,
            SeccompAction::Errno(libc::EPERM.unsigned_abs()),
            SeccompAction::Allow,
        )?;
        Ok(Filters { absent, listed })
    }
}

#[derive(Debug)]
/// Two filters, in the order they are put in place; the kernel takes the stricter answer.
pub(super) struct Filters {
    absent: BpfProgram,
    listed: BpfProgram,
}

impl Filters {
    /// For every thread of the process, and those they start.
    pub(super) fn apply(self) -> Result<(), ConfineError> {
        self.install(libc::SECCOMP_FILTER_FLAG_TSYNC)
    }

    /// For the calling thread.
    pub(super) fn apply_to_thread(self) -> Result<(), ConfineError> {
        self.install(0)
    }

    fn install(self, flags: libc::c_ulong) -> Result<(), ConfineError> {
        for program in [&self.absent, &self.listed] {
            install(program, flags).map_err(refused)?;
        }
        Ok(())
    }
}

/// seccomp(2), for which a process must have no_new_privs.
fn install(program: &BpfProgram, flags: libc::c_ulong) -> std::io::Result<()> {
    let length = program.len().try_into();
    let program = libc::sock_fprog {
        len: length.map_err(|_| std::io::Error::from_raw_os_error(libc::EINVAL))?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `program` and the filter that it points to live until the call returns, and the kernel only reads them.
    // seccompiler's own call sets no_new_privs each time, which a confined process may not do.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match result {
        0 => Ok(()),
        -1 => Err(std::io::Error::last_os_error()),
        thread => Err(std::io::Error::other(format!(
            "thread {thread} has another filter"
        ))),
    }
}

fn rule(all: &[Must]) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = all.iter().map(|must| {
        let operator = must.mask.map_or(SeccompCmpOp::Eq, SeccompCmpOp::MaskedEq);
        let length = match must.length {
            Length::Int => SeccompCmpArgLen::Dword,
            Length::Pointer => SeccompCmpArgLen::Qword,
        };
        SeccompCondition::new(must.argument, length, operator, must.value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

fn filter(
    rules: BTreeMap<libc::c_long, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    on_match: SeccompAction,
) -> Result<BpfProgram, ConfineError> {
    SeccompFilter::new(rules, otherwise, on_match, TargetArch::x86_64)
        .and_then(TryInto::try_into)
        .map_err(refused)
}

fn refused(error: impl std::fmt::Display) -> ConfineError {
    ConfineError::Syscalls(error.to_string())
}
