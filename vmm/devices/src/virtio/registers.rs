//! The common configuration (virtio 1.2 §4.1.4.3) and the state machine of its status register (§2.1, §3.1).

use virtio_bindings::virtio_config as status;

use super::F_VERSION_1;
use super::interrupts::Interrupts;
use super::queue::Queue;

/// The length of the common configuration, without the fields of features that this transport does not offer.
pub(super) const COMMON_LEN: usize = 0x38;

const ACKNOWLEDGE: u8 = status::VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
const DRIVER: u8 = status::VIRTIO_CONFIG_S_DRIVER as u8;
const DRIVER_OK: u8 = status::VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = status::VIRTIO_CONFIG_S_FEATURES_OK as u8;
const NEEDS_RESET: u8 = status::VIRTIO_CONFIG_S_NEEDS_RESET as u8;
const FAILED: u8 = status::VIRTIO_CONFIG_S_FAILED as u8;

/// What the transport has to do after a write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// The driver is ready (DRIVER_OK).
    Activate,
    Reset,
    /// The queue's vector has changed.
    Vector(u16),
}

pub(super) struct Registers {
    device_feature_select: u32,
    driver_feature_select: u32,
    device_features: u64,
    driver_features: u64,
    status: u8,
    queue_select: u16,
    queues: Vec<Queue>,
    /// A reset has begun and is not complete.
    resetting: bool,
}

impl Registers {
    pub(super) fn new(device_features: u64, max_sizes: &[u16]) -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            device_features,
            driver_features: 0,
            status: 0,
            queue_select: 0,
            queues: max_sizes.iter().copied().map(Queue::new).collect(),
            resetting: false,
        }
    }

    /// Sets all registers to their state after power-on. The device offers `device_features`.
    pub(super) fn reset(&mut self, device_features: u64) {
        let max_sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self::new(device_features, &max_sizes);
    }

    /// From now on writes have no effect, until [`Self::reset`].
    pub(super) fn begin_reset(&mut self) {
        self.resetting = true;
    }

    pub(super) fn is_resetting(&self) -> bool {
        self.resetting
    }

    /// The features that the driver has accepted.
    pub(super) fn features(&self) -> u64 {
        self.driver_features
    }

    pub(super) fn queues(&self) -> &[Queue] {
        &self.queues
    }

    pub(super) fn is_live(&self) -> bool {
        self.status & DRIVER_OK != 0
    }

    /// Reads at any offset and width.
    pub(super) fn read(&self, interrupts: &Interrupts, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let image = self.image(interrupts);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = image.get(start..).unwrap_or_default();
        for (to, byte) in data.iter_mut().zip(bytes) {
            *to = *byte;
        }
    }

    fn image(&self, interrupts: &Interrupts) -> [u8; COMMON_LEN] {
        let mut image = [0; COMMON_LEN];
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, byte) in image.iter_mut().skip(at).zip(bytes) {
                *to = *byte;
            }
        };
        let device = word(self.device_features, self.device_feature_select);
        let driver = word(self.driver_features, self.driver_feature_select);
        let needs_reset = u8::from(interrupts.is_reset_needed()) * NEEDS_RESET;
        put(0x00, &self.device_feature_select.to_le_bytes());
        put(0x04, &device.to_le_bytes());
        put(0x08, &self.driver_feature_select.to_le_bytes());
        put(0x0c, &driver.to_le_bytes());
        put(0x10, &interrupts.config_vector().to_le_bytes());
        put(0x12, &(self.queues.len() as u16).to_le_bytes());
        put(0x14, &[self.status | needs_reset, interrupts.generation()]);
        put(0x16, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0 (§4.1.4.3.1), and zeros altogether.
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(0x18, &queue.size.to_le_bytes());
            put(0x1a, &queue.vector.to_le_bytes());
            put(0x1c, &u16::from(queue.enabled).to_le_bytes());
            put(0x1e, &self.queue_select.to_le_bytes());
            put(0x20, &queue.descriptors.to_le_bytes());
            put(0x28, &queue.available.to_le_bytes());
            put(0x30, &queue.used.to_le_bytes());
        }
        image
    }

    /// Writes. Drivers must use each field's width, or two halves for the 64-bit fields (§4.1.3.1). Other writes have
    /// no effect.
    pub(super) fn write(&mut self, interrupts: &Interrupts, offset: u64, data: &[u8]) -> Action {
        match *data {
            _ if self.resetting => {}
            [byte] if offset == 0x14 => return self.write_status(byte),
            [a, b] => return self.write16(interrupts, offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write32(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if matches!(offset, 0x20 | 0x28 | 0x30) => {
                self.write32(offset, u32::from_le_bytes([a, b, c, d]));
                self.write32(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
        Action::Nothing
    }

    fn write16(&mut self, interrupts: &Interrupts, offset: u64, value: u16) -> Action {
        let live = self.is_live();
        match offset {
            0x10 => interrupts.set_config_vector(value),
            0x16 => self.queue_select = value,
            _ => {}
        }
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return Action::Nothing;
        };
        match offset {
            0x18 if !live && !queue.enabled => queue.set_size(value),
            0x1a => {
                queue.vector = interrupts.valid(value);
                if live && queue.enabled {
                    return Action::Vector(self.queue_select);
                }
            }
            // Writing 0 is forbidden to drivers (§4.1.4.3.2).
            0x1c if !live && value == 1 => queue.enabled = true,
            _ => {}
        }
        Action::Nothing
    }

    fn write32(&mut self, offset: u64, value: u32) {
        let fixed = self.status & FEATURES_OK != 0;
        match offset {
            0x00 => self.device_feature_select = value,
            0x08 => self.driver_feature_select = value,
            0x0c if !fixed => {
                set_word(&mut self.driver_features, self.driver_feature_select, value)
            }
            0x20..0x38 => self.write_address(offset, value),
            _ => {}
        }
    }

    fn write_address(&mut self, offset: u64, value: u32) {
        let live = self.is_live();
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return;
        };
        let address = match offset {
            0x20 | 0x24 => &mut queue.descriptors,
            0x28 | 0x2c => &mut queue.available,
            0x30 | 0x34 => &mut queue.used,
            _ => return,
        };
        if !live && !queue.enabled {
            set_word(address, (offset & 4 != 0).into(), value);
        }
    }

    fn write_status(&mut self, value: u8) -> Action {
        if value == 0 {
            return Action::Reset;
        }
        // A driver never clears a bit (§2.1.1), and does not set NEEDS_RESET.
        let mut new =
            value & (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED) & !self.status;
        if new & FEATURES_OK != 0 && !self.are_features_valid() {
            new &= !FEATURES_OK;
        }
        self.status |= new & !DRIVER_OK;
        // A modern driver sets FEATURES_OK before DRIVER_OK.
        if new & DRIVER_OK != 0 && self.status & FEATURES_OK != 0 {
            self.status |= DRIVER_OK;
            return Action::Activate;
        }
        Action::Nothing
    }

    fn are_features_valid(&self) -> bool {
        let accepted = self.driver_features;
        accepted & !self.device_features == 0 && accepted & F_VERSION_1 != 0
    }
}

/// The 32 bits that a select register selects.
fn word(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn set_word(whole: &mut u64, select: u32, value: u32) {
    match select {
        0 => *whole = *whole & !0xffff_ffff | u64::from(value),
        1 => *whole = *whole & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}
