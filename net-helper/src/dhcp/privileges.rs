//! Capabilities of the processes around dnsmasq: none in effect but for the moment in which one is used.

use std::io;

use rustix::process::{Gid, Signal, Uid, set_parent_process_death_signal};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// What dnsmasq uses until it listens: its ports, and becoming its own user. It refuses to serve DHCP unless it is permitted to
/// administrate the network, which it does not do.
pub(super) const DNSMASQ: CapabilitySet = CapabilitySet::NET_BIND_SERVICE
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID);

/// What the launcher uses: the same to be given on, namespaces, and ending a keeper that is another user.
pub(super) const LAUNCHER: CapabilitySet = DNSMASQ
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::KILL);

/// Keeps these capabilities, none of them in effect.
pub(super) fn reduce(kept: CapabilitySet) -> io::Result<()> {
    bound(kept);
    hold(kept, CapabilitySet::empty(), CapabilitySet::empty())
}

/// Does something with all of the capabilities in effect.
pub(super) fn with_raised<T>(act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let all = CapabilitySet::all();
    hold(all, all, CapabilitySet::empty())?;
    let done = act();
    hold(all, CapabilitySet::empty(), CapabilitySet::empty())?;
    done
}

/// Becomes the keeper: another user, whose only capabilities are those to be given to dnsmasq, and who dies with the launcher.
pub(super) fn become_keeper(user: u32, group: u32) -> io::Result<()> {
    bound(DNSMASQ);
    set_keep_capabilities(true)?;
    set_thread_groups(&[])?;
    let group = Gid::from_raw(group);
    set_thread_res_gid(group, group, group)?;
    let user = Uid::from_raw(user);
    set_thread_res_uid(user, user, user)?;
    hold(DNSMASQ, CapabilitySet::empty(), DNSMASQ)?;
    for one in DNSMASQ.iter() {
        configure_capability_in_ambient_set(one, true)?;
    }
    set_no_new_privs(true)?;
    // After the user was changed: that clears it. A launcher that has died before is seen by the end of its pipe.
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Becomes what dnsmasq starts as.
pub(super) fn become_root() -> io::Result<()> {
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    clear_ambient_capability_set()?;
    hold(DNSMASQ, DNSMASQ, CapabilitySet::empty())
}

fn bound(kept: CapabilitySet) {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        // Past the last capability, or without the right to give any up: nothing more to do here.
        if !kept.contains(one) && remove_capability_from_bounding_set(one).is_err() {
            break;
        }
    }
}

fn hold(
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
