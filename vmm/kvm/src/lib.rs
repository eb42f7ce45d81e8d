//! `bulkhead-kvm`: KVM: the machine, its vCPUs, memory and interrupt routes.
