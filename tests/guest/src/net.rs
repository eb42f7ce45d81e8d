//! A network device, with completions by interrupt.

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::DeviceType;

use crate::interrupts;
use crate::memory::GuestHal;
use crate::packet::Mac;
use crate::pci::{self, Configuration};
use crate::transport::VirtioTransport;

const QUEUE_SIZE: usize = 64;
const RECEIVE_BUFFER: usize = 2048;

/// A virtio network device.
pub(crate) struct Nic {
    device: VirtIONetRaw<GuestHal, VirtioTransport, QUEUE_SIZE>,
    vector: u8,
    /// By token.
    receiving: Vec<Option<Vec<u8>>>,
    /// By token.
    sending: Vec<Option<Vec<u8>>>,
}

impl Nic {
    /// The first virtio network device. It interrupts with `vector` on reception and with the next one on transmission.
    pub(crate) fn find(configuration: Configuration, vector: u8) -> Self {
        let Some(function) = pci::find_virtio(configuration, DeviceType::Network, 0) else {
            panic!("there is no network device");
        };
        let transport = match VirtioTransport::new(configuration, function, vector) {
            Ok(transport) => transport,
            Err(error) => panic!("network device {function}: {error}"),
        };
        let device = match VirtIONetRaw::new(transport) {
            Ok(device) => device,
            Err(error) => panic!("network device {function}: {error}"),
        };
        let mut nic = Self {
            device,
            vector,
            receiving: vec![None; QUEUE_SIZE],
            sending: vec![None; QUEUE_SIZE],
        };
        for _ in 0..QUEUE_SIZE {
            nic.give(vec![0; RECEIVE_BUFFER]);
        }
        nic
    }

    /// The device's Ethernet address.
    pub(crate) fn mac(&self) -> Mac {
        self.device.mac_address()
    }

    /// How many interrupts there have been for reception and for transmission.
    pub(crate) fn interrupts(&self) -> (u64, u64) {
        (
            interrupts::count(self.vector),
            interrupts::count(self.vector + 1),
        )
    }

    fn give(&mut self, mut buffer: Vec<u8>) {
        // SAFETY: the buffer is kept in `receiving` until the device has completed it.
        match unsafe { self.device.receive_begin(&mut buffer) } {
            Ok(token) => self.receiving[usize::from(token)] = Some(buffer),
            Err(error) => panic!("receive: {error}"),
        }
    }

    /// Takes the next frame that has been received, if there is one.
    pub(crate) fn receive(&mut self) -> Option<Vec<u8>> {
        fence(Ordering::SeqCst);
        let token = self.device.poll_receive()?;
        let Some(mut buffer) = self.receiving[usize::from(token)].take() else {
            panic!("the device completed a buffer that it was not given");
        };
        // SAFETY: the buffer that was given for this token.
        let (header, size) = match unsafe { self.device.receive_complete(token, &mut buffer) } {
            Ok(sizes) => sizes,
            Err(error) => panic!("receive: {error}"),
        };
        let frame = buffer[header..header + size].to_vec();
        self.give(buffer);
        Some(frame)
    }

    /// Sends a frame. Does not wait until it is sent, unless the queue is full.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.reclaim();
        while !self.device.can_send() {
            core::hint::spin_loop();
            self.reclaim();
        }
        let mut buffer = vec![0; 12 + frame.len()];
        match self.device.fill_buffer_header(&mut buffer) {
            Ok(size) => buffer[size..].copy_from_slice(frame),
            Err(error) => panic!("send: {error}"),
        }
        // SAFETY: the buffer is kept in `sending` until the device has completed it.
        match unsafe { self.device.transmit_begin(&buffer) } {
            Ok(token) => self.sending[usize::from(token)] = Some(buffer),
            Err(error) => panic!("send: {error}"),
        }
    }

    /// Takes back what has been sent.
    fn reclaim(&mut self) {
        loop {
            fence(Ordering::SeqCst);
            let Some(token) = self.device.poll_transmit() else {
                break;
            };
            let Some(buffer) = self.sending[usize::from(token)].take() else {
                panic!("the device completed a frame that it was not given");
            };
            // SAFETY: the buffer that was given for this token.
            if let Err(error) = unsafe { self.device.transmit_complete(token, &buffer) } {
                panic!("send: {error}");
            }
        }
    }

    /// Waits until everything has been sent.
    pub(crate) fn drain(&mut self) {
        while self.sending.iter().any(Option::is_some) {
            core::hint::spin_loop();
            self.reclaim();
        }
    }
}
