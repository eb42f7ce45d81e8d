//! Users and capabilities of the processes around dnsmasq. A capability is in effect only at the moment of its use.

use std::io;

use rustix::process::{Gid, Signal, Uid, set_parent_process_death_signal};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// dnsmasq's capabilities until it listens: it binds its ports and becomes its own user. It also refuses to serve DHCP
/// without CAP_NET_ADMIN, which it does not use here.
pub(super) const DNSMASQ: CapabilitySet = CapabilitySet::NET_BIND_SERVICE
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID);

/// The supervisor's capabilities: those that it passes on to dnsmasq, and those to create namespaces and to kill init,
/// which has another user.
pub(super) const SUPERVISOR: CapabilitySet = DNSMASQ
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::KILL);

/// Gives up all capabilities but these, which are not in effect afterwards.
pub(super) fn reduce(kept: CapabilitySet) -> io::Result<()> {
    drop_from_bounding_set(kept);
    set(kept, CapabilitySet::empty(), CapabilitySet::empty())
}

/// Calls `act` with all permitted capabilities in effect.
pub(super) fn with_raised<T>(act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let all = CapabilitySet::all();
    set(all, all, CapabilitySet::empty())?;
    let done = act();
    set(all, CapabilitySet::empty(), CapabilitySet::empty())?;
    done
}

/// Makes this process init: it gets another user, only the capabilities that it passes on to dnsmasq, and dies with the
/// supervisor.
pub(super) fn become_init(user: u32, group: u32) -> io::Result<()> {
    drop_from_bounding_set(DNSMASQ);
    set_keep_capabilities(true)?;
    set_thread_groups(&[])?;
    let group = Gid::from_raw(group);
    set_thread_res_gid(group, group, group)?;
    let user = Uid::from_raw(user);
    set_thread_res_uid(user, user, user)?;
    set(DNSMASQ, CapabilitySet::empty(), DNSMASQ)?;
    for one in DNSMASQ.iter() {
        configure_capability_in_ambient_set(one, true)?;
    }
    set_no_new_privs(true)?;
    // Changing the user clears this setting, so it comes last. If the supervisor has died before, its end of the pipe
    // is closed.
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Makes this process root with dnsmasq's capabilities in effect, which dnsmasq expects at its start.
pub(super) fn become_root() -> io::Result<()> {
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    clear_ambient_capability_set()?;
    set(DNSMASQ, DNSMASQ, CapabilitySet::empty())
}

fn drop_from_bounding_set(kept: CapabilitySet) {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        // It fails past the last capability, and without CAP_SETPCAP.
        if !kept.contains(one) && remove_capability_from_bounding_set(one).is_err() {
            break;
        }
    }
}

/// Sets the three sets of this thread, without capabilities that it does not have.
fn set(
    permitted: CapabilitySet,
    effective: CapabilitySet,
    inheritable: CapabilitySet,
) -> io::Result<()> {
    let held = capabilities(None)?.permitted;
    let sets = CapabilitySets {
        effective: held & effective,
        permitted: held & permitted,
        inheritable: held & inheritable,
    };
    Ok(set_capabilities(None, sets)?)
}
