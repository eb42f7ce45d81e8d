//! Capabilities: out of every set, so that no later execve can bring them back.

use std::io;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::ConfineError;

/// The capabilities that the process has.
pub(super) fn held() -> Result<CapabilitySet, ConfineError> {
    capabilities(None)
        .map(|sets| sets.permitted)
        .map_err(|error| ConfineError::Capabilities(io::Error::from(error)))
}

/// Keeps those of `kept` that the process has; those of `bounding` may be had by a later execve.
pub(super) fn keep(kept: CapabilitySet, bounding: CapabilitySet) -> Result<(), ConfineError> {
    bound(bounding)
        .and_then(|()| hold(kept))
        .map_err(|error| ConfineError::Capabilities(io::Error::from(error)))
}

/// Drops all but these, after [`keep`].
pub(super) fn keep_only(kept: CapabilitySet) -> Result<(), ConfineError> {
    hold(kept).map_err(|error| ConfineError::Capabilities(io::Error::from(error)))
}

fn bound(kept: CapabilitySet) -> rustix::io::Result<()> {
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Not privileged enough to narrow the bounding set: then there is nothing to gain from it either.
            Err(Errno::PERM) => break,
            // Past the kernel's last capability.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn hold(kept: CapabilitySet) -> rustix::io::Result<()> {
    let held = capabilities(None)?.permitted & kept;
    set_capabilities(
        None,
        CapabilitySets {
            effective: held,
            permitted: held,
            inheritable: CapabilitySet::empty(),
        },
    )
}
