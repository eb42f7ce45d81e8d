//! The guest's CPUID: the features that KVM supports, and this VM's topology and clock.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::Error;

const LEAF_FEATURES: u32 = 1;
const LEAF_CACHES: u32 = 4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_HYPERVISOR: u32 = 0x4000_0000;
/// TSC and APIC bus frequency in kHz: a convention of VMware's that several guests read.
const LEAF_HYPERVISOR_CLOCK: u32 = 0x4000_0010;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;

/// The rate at which KVM's local APIC timer counts.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// The place of a vCPU in the topology: one socket with one thread per core.
pub(crate) struct Topology {
    /// The vCPU's number, which is its APIC identifier.
    pub(crate) index: u8,
    pub(crate) count: u8,
    pub(crate) tsc_khz: Option<u32>,
    pub(crate) tsc_deadline: bool,
}

impl Topology {
    /// The number of bits of the APIC identifier that number the cores.
    fn core_bits(&self) -> u32 {
        u8::BITS - (self.count - 1).leading_zeros()
    }
}

pub(crate) fn for_vcpu(supported: &CpuId, topology: &Topology) -> Result<CpuId, Error> {
    let supported = supported.as_slice();
    let has_topology_leaf = supported
        .iter()
        .any(|entry| entry.function == 0 && entry.eax >= LEAF_TOPOLOGY);
    let mut entries: Vec<_> = supported
        .iter()
        .filter(|entry| {
            // The first and the last are written below. The second version is omitted, so that guests read the first.
            ![LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2, LEAF_HYPERVISOR_CLOCK].contains(&entry.function)
        })
        .map(|entry| patch(*entry, topology))
        .collect();
    if has_topology_leaf {
        entries.extend(topology_leaves(topology));
    }
    if let Some(tsc_khz) = topology.tsc_khz {
        entries.push(kvm_cpuid_entry2 {
            function: LEAF_HYPERVISOR_CLOCK,
            eax: tsc_khz,
            ebx: APIC_BUS_KHZ,
            ..Default::default()
        });
    }
    CpuId::from_entries(&entries).map_err(|_| Error::Missing("room for CPUID"))
}

fn patch(mut entry: kvm_cpuid_entry2, topology: &Topology) -> kvm_cpuid_entry2 {
    let (index, count) = (u32::from(topology.index), u32::from(topology.count));
    match entry.function {
        LEAF_FEATURES => {
            entry.ebx = entry.ebx & 0x0000_ffff | count << 16 | index << 24;
            entry.ecx |= ECX_HYPERVISOR;
            if topology.tsc_deadline {
                entry.ecx |= ECX_TSC_DEADLINE;
            }
            if count > 1 {
                entry.edx |= EDX_HTT;
            }
        }
        LEAF_CACHES if entry.eax & 0x1f != 0 => {
            entry.eax = entry.eax & 0x3fff | cache_sharers(&entry, count) << 14;
            entry.eax |= (count - 1).min(0x3f) << 26;
        }
        LEAF_AMD_CACHES if entry.eax & 0x1f != 0 => {
            entry.eax = entry.eax & 0x3fff | cache_sharers(&entry, count) << 14;
        }
        LEAF_AMD_SIZES => {
            entry.ecx = entry.ecx & !0xf0ff | (count - 1) | topology.core_bits() << 12;
        }
        LEAF_AMD_TOPOLOGY => {
            (entry.eax, entry.ebx, entry.ecx) = (index, index, 0);
        }
        LEAF_HYPERVISOR if topology.tsc_khz.is_some() => {
            entry.eax = entry.eax.max(LEAF_HYPERVISOR_CLOCK);
        }
        _ => {}
    }
    entry
}

/// The number of vCPUs that share a cache, minus 1. The third level is one per socket, the others are one per core.
fn cache_sharers(entry: &kvm_cpuid_entry2, count: u32) -> u32 {
    let level = entry.eax >> 5 & 7;
    if level >= 3 { count - 1 } else { 0 }
}

/// Leaf 0xb: one thread per core, `count` cores.
fn topology_leaves(topology: &Topology) -> [kvm_cpuid_entry2; 3] {
    const TYPE_THREAD: u32 = 1;
    const TYPE_CORE: u32 = 2;
    let leaf = |index, eax, ebx, kind: u32| kvm_cpuid_entry2 {
        function: LEAF_TOPOLOGY,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: kind << 8 | index,
        edx: topology.index.into(),
        ..Default::default()
    };
    [
        leaf(0, 0, 1, TYPE_THREAD),
        leaf(1, topology.core_bits(), topology.count.into(), TYPE_CORE),
        leaf(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax,
            ..Default::default()
        }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .unwrap()
    }

    fn topology(index: u8, count: u8) -> Topology {
        Topology {
            index,
            count,
            tsc_khz: Some(2_000_000),
            tsc_deadline: true,
        }
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id_in_every_leaf_that_has_it() {
        let supported = CpuId::from_entries(&[
            entry(0, 0xd),
            entry(LEAF_FEATURES, 0),
            entry(LEAF_AMD_TOPOLOGY, 0),
        ])
        .unwrap();

        let cpuid = for_vcpu(&supported, &topology(3, 5)).unwrap();

        assert_eq!(find(&cpuid, LEAF_FEATURES, 0).ebx, 3 << 24 | 5 << 16);
        assert_eq!(find(&cpuid, LEAF_TOPOLOGY, 0).edx, 3);
        assert_eq!(find(&cpuid, LEAF_TOPOLOGY, 1).eax, 3);
        assert_eq!(find(&cpuid, LEAF_TOPOLOGY, 1).ebx, 5);
        assert_eq!(find(&cpuid, LEAF_AMD_TOPOLOGY, 0).eax, 3);
    }

    #[test]
    fn the_guest_detects_a_hypervisor_and_the_rate_of_its_clock() {
        let supported =
            CpuId::from_entries(&[entry(LEAF_FEATURES, 0), entry(LEAF_HYPERVISOR, 0x4000_0001)])
                .unwrap();

        let cpuid = for_vcpu(&supported, &topology(0, 1)).unwrap();

        let features = find(&cpuid, LEAF_FEATURES, 0).ecx;
        assert_eq!(features, ECX_HYPERVISOR | ECX_TSC_DEADLINE);
        assert_eq!(find(&cpuid, LEAF_HYPERVISOR, 0).eax, LEAF_HYPERVISOR_CLOCK);
        let clock = find(&cpuid, LEAF_HYPERVISOR_CLOCK, 0);
        assert_eq!((clock.eax, clock.ebx), (2_000_000, APIC_BUS_KHZ));
    }

    #[test]
    fn the_last_level_cache_is_shared_and_the_others_are_not() {
        const L1: u32 = 1 << 5 | 1;
        const L3: u32 = 3 << 5 | 3;
        let supported = CpuId::from_entries(&[
            entry(LEAF_CACHES, L1 | 0xff << 14),
            kvm_cpuid_entry2 {
                index: 3,
                ..entry(LEAF_CACHES, L3)
            },
        ])
        .unwrap();

        let cpuid = for_vcpu(&supported, &topology(0, 4)).unwrap();

        assert_eq!(find(&cpuid, LEAF_CACHES, 0).eax, L1 | 3 << 26);
        assert_eq!(find(&cpuid, LEAF_CACHES, 3).eax, L3 | 3 << 14 | 3 << 26);
    }

    #[test]
    fn identifiers_of_255_vcpus_fit_in_eight_bits() {
        assert_eq!(topology(0, 1).core_bits(), 0);
        assert_eq!(topology(0, 2).core_bits(), 1);
        assert_eq!(topology(0, 255).core_bits(), 8);
    }
}
