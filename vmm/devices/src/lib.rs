//! `bulkhead-devices`: Buses, serial port, PCI, virtio-pci and the one vhost-user frontend.
