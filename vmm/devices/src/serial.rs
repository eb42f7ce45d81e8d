//! The serial port: a 16550, eight registers wide.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// The modem control register: it has the loop-back bit.
const MCR: u8 = 4;

/// How many registers, and so how many bytes of the bus.
pub const SERIAL_LEN: u64 = 8;

struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// An eventfd that is readable once there is room.
struct Room(OwnedFd);

impl Room {
    fn tell(&self) {
        // It only fails when the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn forget(&self) {
        // It only fails when there is nothing to forget.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.tell();
    }
}

type Uart = vm_superio::Serial<Irq, Room, Box<dyn Write + Send>>;

/// A 16550 serial port.
///
/// Output is written out byte by byte; a writer that blocks holds the guest up, so that nothing is lost. For
/// input there is [`Self::feed`], which takes what fits, and [`Self::room`], which tells when more will fit.
pub struct Serial {
    uart: Mutex<Uart>,
    room: Room,
}

impl Serial {
    /// A port that raises its interrupt by signalling `irq` and writes what the guest sends to `out`.
    ///
    /// # Errors
    /// When no eventfd can be had.
    pub fn new(irq: EventFd, out: Box<dyn Write + Send>) -> io::Result<Self> {
        let room = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let uart = Uart::with_events(Irq(irq), Room(room.try_clone()?), out);
        let room = Room(room);
        Ok(Self {
            uart: Mutex::new(uart),
            room,
        })
    }

    /// Gives the guest as many of `bytes` as fit in the receive FIFO, and says how many that was. When it was fewer
    /// than all of them, wait for [`Self::room`] and offer the rest again.
    pub fn feed(&self, bytes: &[u8]) -> usize {
        // The counter is emptied before the FIFO is filled: what the guest reads from here on signals it again.
        self.room.forget();
        let mut uart = self.uart();
        let fits = bytes.len().min(uart.fifo_capacity());
        match bytes.get(..fits) {
            // An interrupt that cannot be signalled is pending already: the bytes are in the FIFO all the same.
            Some(some) if fits > 0 => uart.enqueue_raw_bytes(some).unwrap_or(fits),
            _ => 0,
        }
    }

    /// Becomes readable when the guest has emptied the receive FIFO, or may have begun to listen.
    pub fn room(&self) -> BorrowedFd<'_> {
        self.room.0.as_fd()
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // The registers are bytes; of a wider access only the first byte is the port's, as on the ISA bus.
        if let (Ok(register), Some(byte)) = (u8::try_from(offset), data.first_mut()) {
            *byte = self.uart().read(register);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(register), Some(&byte)) = (u8::try_from(offset), data.first()) {
            // What fails is the writer behind the port (say, a closed terminal): the guest's business goes on.
            let _ = self.uart().write(register, byte);
            if register == MCR {
                // In loop-back the port takes no input: whoever waits with some should try again.
                self.room.tell();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const DATA: u64 = 0;
    const IER: u64 = 1;
    const LSR: u64 = 5;

    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<u8>>>);

    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    /// Whether room was told of, since the last time.
    fn taken(port: &Serial) -> bool {
        rustix::io::read(port.room(), &mut [0; 8]).is_ok()
    }

    fn port() -> (Serial, EventFd, Out) {
        let (irq, out) = (EventFd::new(EFD_NONBLOCK).unwrap(), Out::default());
        let port = Serial::new(irq.try_clone().unwrap(), Box::new(out.clone())).unwrap();
        (port, irq, out)
    }

    fn read(port: &Serial, register: u64) -> u8 {
        let mut byte = [0];
        port.read(register, &mut byte);
        byte[0]
    }

    #[test]
    fn what_the_guest_sends_comes_out() {
        let (port, _, out) = port();
        for byte in b"hello" {
            port.write(DATA, &[*byte]);
        }
        assert_eq!(*out.0.lock().unwrap(), b"hello");
    }

    #[test]
    fn input_interrupts_the_guest_and_waits_in_the_fifo() {
        let (port, irq, _) = port();
        port.write(IER, &[1]);
        let _ = irq.read();

        assert_eq!(port.feed(b"ab"), 2);

        assert!(irq.read().is_ok());
        assert_eq!(read(&port, LSR) & 1, 1);
        assert_eq!((read(&port, DATA), read(&port, DATA)), (b'a', b'b'));
        assert_eq!(read(&port, LSR) & 1, 0);
    }

    #[test]
    fn no_input_is_lost_when_the_guest_is_slow() {
        let (port, _, _) = port();
        let input: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let (mut sent, mut got) = (0, Vec::new());
        while got.len() < input.len() {
            sent += port.feed(&input[sent..]);
            assert!(sent - got.len() <= 64, "more than the FIFO holds");
            if sent < input.len() {
                assert_eq!(port.feed(&input[sent..]), 0);
                assert!(!taken(&port), "no room, but told so");
            }
            while read(&port, LSR) & 1 == 1 {
                got.push(read(&port, DATA));
            }
            assert!(taken(&port), "room, but not told");
        }
        assert_eq!(got, input);
    }

    #[test]
    fn odd_accesses_do_no_harm() {
        let (port, _, out) = port();
        port.read(0, &mut []);
        port.write(0, &[]);
        port.write(DATA, b"xyz");
        port.write(7777, b"?");
        let mut wide = [0xff; 4];
        port.read(LSR, &mut wide);
        assert_eq!(wide[1..], [0xff; 3]);
        assert_eq!(*out.0.lock().unwrap(), b"x");
    }
}
