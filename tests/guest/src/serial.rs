//! Lines on COM1. Only the boot processor speaks.

use core::fmt::{self, Write};

use crate::port;

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = DATA + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

/// COM1, as the firmware or the monitor has set it up.
pub(crate) struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while port::read_u8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
                core::hint::spin_loop();
            }
            port::write_u8(DATA, byte);
        }
        Ok(())
    }
}

/// Prints a line that begins with `guest: `.
macro_rules! say {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        let _ = writeln!($crate::serial::Serial, "guest: {}", format_args!($($argument)*));
    }};
}
pub(crate) use say;
