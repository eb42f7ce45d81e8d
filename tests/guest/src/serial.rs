//! Lines on COM1. Only the boot processor speaks.

use alloc::vec::Vec;
use core::fmt::{self, Write};

use crate::port;

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = DATA + 5;
const DATA_READY: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

/// COM1, as the firmware or the monitor has set it up.
pub(crate) struct Serial;

/// Waits for a line, and returns it without its end.
pub(crate) fn read_line() -> Vec<u8> {
    let mut line = Vec::new();
    loop {
        while port::read_u8(LINE_STATUS) & DATA_READY == 0 {
            core::hint::spin_loop();
        }
        match port::read_u8(DATA) {
            b'\n' | b'\r' => return line,
            byte => line.push(byte),
        }
    }
}

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
