//! The layout of a virtio function's one BAR, and the capabilities that describe it (virtio 1.2 §4.1.4).

use std::ops::Range;

use super::registers::COMMON_LEN;
use crate::pci::{BarSpec, CapabilityError, ConfigSpace, Identity, MSIX_TABLE_ENTRY_LEN, Msix};

pub(super) const BAR: usize = 0;
pub(super) const BAR_LEN: u64 = 0x1_0000;

// Each part has pages of its own.
pub(super) const COMMON: Range<u64> = 0..0x1000;
pub(super) const ISR: Range<u64> = 0x1000..0x2000;
pub(super) const DEVICE: Range<u64> = 0x2000..0x3000;
pub(super) const NOTIFY: Range<u64> = 0x3000..0x4000;
pub(super) const PENDING: Range<u64> = 0x4000..0x5000;
pub(super) const TABLE: Range<u64> = 0x8000..0x1_0000;

/// Each queue's doorbell has an address of its own, by which alone the hypervisor distinguishes them.
pub(super) const NOTIFY_MULTIPLIER: u64 = 4;
/// The number of doorbells. MSI-X has enough vectors for as many queues and the configuration.
pub(super) const MAX_QUEUES: usize = ((NOTIFY.end - NOTIFY.start) / NOTIFY_MULTIPLIER) as usize;

const VENDOR: u16 = 0x1af4;
const MODERN_DEVICE: u16 = 0x1040;

const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;

/// The offsets in configuration space of the registers that the function itself reads.
pub(super) struct Offsets {
    /// MSI-X message control, 2 bytes.
    pub(super) msix_control: u16,
    /// The BAR number in the PCI configuration access capability. Offset, length and data are 4, 8 and 12 bytes after
    /// it.
    pub(super) pci_cfg: u16,
}

impl Offsets {
    pub(super) fn pci_cfg_data(&self) -> u16 {
        self.pci_cfg + 12
    }
}

fn class(device_type: u16) -> u32 {
    match device_type {
        1 => 0x02_00_00,
        2 | 8 => 0x01_00_00,
        3 | 11 => 0x07_80_00,
        9 | 26 => 0x01_80_00,
        16 => 0x03_80_00,
        18 => 0x09_80_00,
        25 => 0x04_01_00,
        _ => 0xff_00_00,
    }
}

/// The configuration space of a virtio function.
pub(super) fn config_space(
    device_type: u16,
    queues: usize,
    msix: &Msix,
) -> Result<(ConfigSpace, Offsets), CapabilityError> {
    let mut space = ConfigSpace::new(&Identity {
        vendor: VENDOR,
        device: MODERN_DEVICE.saturating_add(device_type),
        revision: 1,
        class: class(device_type),
        subsystem_vendor: VENDOR,
        subsystem: MODERN_DEVICE.saturating_add(device_type),
    });
    space.add_bar(BarSpec {
        index: BAR,
        size: BAR_LEN,
    })?;
    let doorbells = queues as u64 * NOTIFY_MULTIPLIER;
    let multiplier = (NOTIFY_MULTIPLIER as u32).to_le_bytes();
    let part = |kind, start: u64, len: u64| capability(kind, start as u32, len as u32);
    let mut notify = part(2, NOTIFY.start, doorbells);
    notify.extend(multiplier);
    notify[0] += 4;
    let mut pci_cfg = capability(5, 0, 0);
    pci_cfg.extend([0; 4]);
    pci_cfg[0] += 4;

    space.add_capability(CAP_VENDOR, &part(1, COMMON.start, COMMON_LEN as u64), &[])?;
    space.add_capability(CAP_VENDOR, &notify, &[])?;
    space.add_capability(CAP_VENDOR, &part(3, ISR.start, 1), &[])?;
    let device_len = DEVICE.end - DEVICE.start;
    space.add_capability(CAP_VENDOR, &part(4, DEVICE.start, device_len), &[])?;
    // The driver writes BAR number, offset, length and data.
    let mut writable = [0; 18];
    writable[2] = 0xff;
    writable[6..].fill(0xff);
    let pci_cfg = space.add_capability(CAP_VENDOR, &pci_cfg, &writable)? + 2;
    let (table, pending) = (TABLE.start as u32, PENDING.start as u32);
    let (body, writable) = msix.capability(BAR as u8, table, pending);
    let msix_control = space.add_capability(CAP_MSIX, &body, &writable)?;
    debug_assert!(u64::from(msix.count()) * MSIX_TABLE_ENTRY_LEN <= TABLE.end - TABLE.start);
    let offsets = Offsets {
        msix_control,
        pci_cfg,
    };
    Ok((space, offsets))
}

/// `struct virtio_pci_cap` after id and link.
fn capability(kind: u8, offset: u32, len: u32) -> Vec<u8> {
    let mut body = vec![16, kind, BAR as u8, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(len.to_le_bytes());
    body
}
