//! Whether this machine's KVM can run Linux.

pub use bulkhead_kvm::Verdict;

/// What the monitor's own probe finds. A KVM that cannot be used runs nothing.
#[must_use]
pub fn probe() -> Verdict {
    bulkhead_kvm::probe().unwrap_or_else(|error| Verdict::RunsNothing(error.to_string()))
}
