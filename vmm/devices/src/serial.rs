//! The serial port: a 16550, eight registers wide.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;

/// The modem control register: it has the loop-back bit.
const MCR: u8 = 4;

/// The number of registers, of one byte each.
pub const SERIAL_LEN: u64 = 8;

struct Irq(Arc<EventFd>);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// An eventfd that is readable when the receive FIFO has space again.
#[derive(Clone)]
struct SpaceEvent(Arc<OwnedFd>);

impl SpaceEvent {
    fn signal(&self) {
        // It only fails when the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn clear(&self) {
        // It only fails when the counter is zero already.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl SerialEvents for SpaceEvent {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.signal();
    }
}

type Uart = vm_superio::Serial<Irq, SpaceEvent, Box<dyn Write + Send>>;

/// A 16550 serial port.
///
/// Output is written byte by byte; a writer that blocks holds the guest up, so that nothing is lost. [`Self::enqueue`]
/// takes as much input as the receive FIFO has space for, and [`Self::space_event`] signals when there is space again.
pub struct Serial {
    state: Mutex<State>,
    irq: Arc<EventFd>,
    space: SpaceEvent,
}

struct State {
    uart: Uart,
    /// No input is taken.
    paused: bool,
}

impl Serial {
    /// A port that raises its interrupt by signalling `irq` and writes what the guest sends to `out`.
    ///
    /// # Errors
    /// When no eventfd can be had.
    pub fn new(irq: EventFd, out: Box<dyn Write + Send>) -> io::Result<Self> {
        let space = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let (irq, space) = (Arc::new(irq), SpaceEvent(Arc::new(space)));
        let state = State {
            uart: Uart::with_events(Irq(irq.clone()), space.clone(), out),
            paused: false,
        };
        Ok(Self {
            state: Mutex::new(state),
            irq,
            space,
        })
    }

    /// Puts as many of `bytes` into the receive FIFO as it has space for, and returns their number. If some are left,
    /// wait for [`Self::space_event`] and enqueue them again.
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        // The event is cleared before the FIFO is filled, so that whatever the guest reads from here on signals it
        // again.
        self.space.clear();
        let State { uart, paused } = &mut *self.state();
        let fits = match paused {
            true => 0,
            false => bytes.len().min(uart.fifo_capacity()),
        };
        match bytes.get(..fits) {
            // If the interrupt cannot be signalled, it is pending already, and the bytes are in the FIFO all the same.
            Some(some) if fits > 0 => uart.enqueue_raw_bytes(some).unwrap_or(fits),
            _ => 0,
        }
    }

    /// Becomes readable when the receive FIFO may have space: the guest has emptied it or left loop-back mode, or the
    /// port was reset or resumed.
    pub fn space_event(&self) -> BorrowedFd<'_> {
        self.space.0.as_fd()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lifecycle for Serial {
    /// Input in the FIFO is lost, as in a real UART. Output has left the port already.
    fn reset(&self) {
        let State { uart, .. } = &mut *self.state();
        let new = |out| Uart::with_events(Irq(self.irq.clone()), self.space.clone(), out);
        let former = std::mem::replace(uart, new(Box::new(io::sink())));
        *uart = new(former.into_writer());
        self.space.signal();
    }

    /// Input waits outside.
    fn pause(&self) {
        self.state().paused = true;
    }

    fn resume(&self) {
        self.state().paused = false;
        self.space.signal();
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // The registers are bytes. Of a wider access only the first byte reaches the port, as on the ISA bus.
        if let (Ok(register), Some(byte)) = (u8::try_from(offset), data.first_mut()) {
            *byte = self.state().uart.read(register);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(register), Some(&byte)) = (u8::try_from(offset), data.first()) {
            // Only the writer can fail, for example at a closed terminal. The guest runs on.
            let _ = self.state().uart.write(register, byte);
            if register == MCR {
                // The port takes no input while it is in loop-back mode, which this write may have ended.
                self.space.signal();
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
    const LCR: u64 = 3;
    const LSR: u64 = 5;
    /// IER, LCR (8 bits, no parity) and LSR (the transmitter is empty).
    const POWER_ON: [u8; 3] = [0, 3, 0x60];

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

    /// Whether space was signalled since the last call.
    fn took_space_event(port: &Serial) -> bool {
        rustix::io::read(port.space_event(), &mut [0; 8]).is_ok()
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

        assert_eq!(port.enqueue(b"ab"), 2);

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
            sent += port.enqueue(&input[sent..]);
            assert!(sent - got.len() <= 64, "more than the FIFO holds");
            if sent < input.len() {
                assert_eq!(port.enqueue(&input[sent..]), 0);
                assert!(!took_space_event(&port), "signalled without space");
            }
            while read(&port, LSR) & 1 == 1 {
                got.push(read(&port, DATA));
            }
            assert!(took_space_event(&port), "space, but not signalled");
        }
        assert_eq!(got, input);
    }

    #[test]
    fn a_paused_port_takes_no_input_until_it_is_resumed() {
        let (port, _, _) = port();
        assert_eq!(port.enqueue(b"a"), 1);
        port.pause();
        assert_eq!(port.enqueue(b"b"), 0);
        assert!(!took_space_event(&port));
        port.resume();
        assert!(took_space_event(&port));
        assert_eq!(port.enqueue(b"b"), 1);
        assert_eq!((read(&port, DATA), read(&port, DATA)), (b'a', b'b'));
    }

    #[test]
    fn a_reset_port_is_as_after_power_on_and_still_works() {
        let (port, irq, out) = port();
        port.write(IER, &[1]);
        port.write(LCR, &[0x83]);
        port.write(DATA, &[0x55]); // the divisor
        assert_eq!(port.enqueue(b"lost"), 4);
        let _ = irq.read();

        port.reset();

        assert!(took_space_event(&port));
        let registers = [IER, LCR, LSR].map(|register| read(&port, register));
        assert_eq!(registers, POWER_ON);
        port.write(DATA, b"x");
        assert_eq!(*out.0.lock().unwrap(), b"x");
        port.write(IER, &[1]);
        assert_eq!(port.enqueue(b"a"), 1);
        assert!(irq.read().is_ok());
        assert_eq!(read(&port, DATA), b'a');
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
