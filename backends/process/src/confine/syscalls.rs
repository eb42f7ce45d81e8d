//! The allow-list of system calls, as seccomp filters.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::ConfineError;

/// One condition on one argument; conditions on the same call are alternatives.
#[derive(Clone, Copy, Debug)]
struct When {
    argument: u8,
    mask: Option<u64>,
    value: u64,
}

/// System calls that are allowed: always (no condition), or when one of the conditions holds.
#[derive(Debug, Default)]
pub(super) struct SyscallList {
    allowed: BTreeMap<libc::c_long, Vec<When>>,
    unavailable: Vec<libc::c_long>,
}

impl SyscallList {
    pub(super) fn always(&mut self, number: libc::c_long) {
        self.allowed.insert(number, Vec::new());
    }

    pub(super) fn when_equal(&mut self, number: libc::c_long, argument: u8, value: u64) {
        self.when(
            number,
            When {
                argument,
                mask: None,
                value,
            },
        );
    }

    pub(super) fn when_masked(
        &mut self,
        number: libc::c_long,
        argument: u8,
        mask: u64,
        value: u64,
    ) {
        self.when(
            number,
            When {
                argument,
                mask: Some(mask),
                value,
            },
        );
    }

    /// The call fails with ENOSYS, as on a kernel that has not got it.
    pub(super) fn unavailable(&mut self, number: libc::c_long) {
        self.unavailable.push(number);
    }

    fn when(&mut self, number: libc::c_long, when: When) {
        match self.allowed.get_mut(&number) {
            // Allowed always already.
            Some(conditions) if conditions.is_empty() => {}
            Some(conditions) => conditions.push(when),
            None => {
                self.allowed.insert(number, vec![when]);
            }
        }
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
        for (number, conditions) in self.allowed {
            let alternatives = conditions
                .into_iter()
                .map(rule)
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

/// Two filters, in the order they are put in place; the kernel takes the stricter answer.
pub(super) struct Filters {
    absent: BpfProgram,
    listed: BpfProgram,
}

impl Filters {
    pub(super) fn apply(self) -> Result<(), ConfineError> {
        seccompiler::apply_filter_all_threads(&self.absent).map_err(refused)?;
        seccompiler::apply_filter_all_threads(&self.listed).map_err(refused)
    }
}

fn rule(when: When) -> Result<SeccompRule, seccompiler::BackendError> {
    let operator = when.mask.map_or(SeccompCmpOp::Eq, SeccompCmpOp::MaskedEq);
    SeccompRule::new(vec![SeccompCondition::new(
        when.argument,
        SeccompCmpArgLen::Dword,
        operator,
        when.value,
    )?])
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
