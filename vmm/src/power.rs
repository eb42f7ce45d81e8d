//! The power management registers of a hardware-reduced ACPI machine (ACPI 6.5, section 4.8.3.7).

use std::sync::Arc;

use bulkhead_boot::layout::{RESET_VALUE, SLEEP_TYPE_S5};
use bulkhead_devices::{BusDevice, Lifecycle};

use crate::stop::{Stop, StopReason};

const SLEEP_CONTROL: u64 = 0;
const RESET: u64 = 2;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// Sleep control, sleep status and reset: one byte each. They read as 0: no wake event is pending.
pub(crate) struct PowerRegisters(pub(crate) Arc<Stop>);

/// The registers hold no state: each write takes effect at once.
impl Lifecycle for PowerRegisters {}

impl BusDevice for PowerRegisters {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data.first()) {
            (SLEEP_CONTROL, Some(value))
                if value & SLEEP_ENABLE != 0
                    && value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == SLEEP_TYPE_S5 =>
            {
                self.0.report(StopReason::PowerOff);
            }
            (RESET, Some(&RESET_VALUE)) => self.0.report(StopReason::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_value_in_the_right_register_ends_the_guest() {
        for (offset, value, reason) in [
            (0, 0x34, Some(StopReason::PowerOff)),
            (0, 0x14, None), // not enabled
            (0, 0x24, None), // another sleep type
            (1, 0x34, None),
            (2, 1, Some(StopReason::Reset)),
            (2, 0, None),
        ] {
            let stop = Arc::new(Stop::new().unwrap());
            PowerRegisters(stop.clone()).write(offset, &[value]);
            assert_eq!(stop.reason(), reason, "{value:#x} to {offset}");
        }
    }
}
