//! A block device, with completions by interrupt.

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use virtio_drivers::device::blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::DeviceType;

use crate::interrupts;
use crate::memory::GuestHal;
use crate::msix::MsixTable;
use crate::pci::{self, Configuration};
use crate::transport::VirtioTransport;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Operation {
    /// Device to memory.
    Read,
    /// Memory to device.
    Write,
}

/// A request and its memory.
pub(crate) struct Request {
    /// The first sector.
    pub(crate) sector: u64,
    /// What is written, or has been read: a multiple of [`SECTOR_SIZE`].
    pub(crate) data: Vec<u8>,
    header: BlkReq,
    response: BlkResp,
    token: Option<u16>,
}

impl Request {
    pub(crate) fn new(sector: u64, sectors: u64) -> Self {
        Self {
            sector,
            data: vec![0; sectors as usize * SECTOR_SIZE],
            header: BlkReq::default(),
            response: BlkResp::default(),
            token: None,
        }
    }
}

/// A virtio block device.
pub(crate) struct Disk {
    device: VirtIOBlk<GuestHal, VirtioTransport>,
    table: MsixTable,
    vector: u8,
    interrupts_seen: u64,
}

impl Disk {
    /// The `index`-th virtio block device, interrupting with `vector`.
    pub(crate) fn find(configuration: Configuration, index: usize, vector: u8) -> Self {
        let Some(function) = pci::find_virtio(configuration, DeviceType::Block, index) else {
            panic!("there is no block device {index}");
        };
        let transport = match VirtioTransport::new(configuration, function, vector) {
            Ok(transport) => transport,
            Err(error) => panic!("block device {function}: {error}"),
        };
        let table = transport.table();
        let device = match VirtIOBlk::new(transport) {
            Ok(device) => device,
            Err(error) => panic!("block device {function}: {error}"),
        };
        Self {
            device,
            table,
            vector,
            interrupts_seen: interrupts::count(vector),
        }
    }

    /// The size in sectors.
    pub(crate) fn sectors(&self) -> u64 {
        self.device.capacity()
    }

    /// Whether the device says it cannot be written.
    pub(crate) fn is_read_only(&self) -> bool {
        self.device.readonly()
    }

    /// The device's serial number.
    pub(crate) fn serial(&mut self, buffer: &mut [u8; 20]) -> usize {
        match self.device.device_id(buffer) {
            Ok(length) => length,
            Err(error) => panic!("get id: {error}"),
        }
    }

    /// The device's MSI-X table. Entry 0 is that of its queue.
    pub(crate) fn table(&mut self) -> &mut MsixTable {
        &mut self.table
    }

    /// From now on the device interrupts with this vector.
    pub(crate) fn set_vector(&mut self, vector: u8) {
        self.table.set_vector(0, vector);
        self.vector = vector;
        self.interrupts_seen = interrupts::count(vector);
    }

    /// How many interrupts there have been from the device.
    pub(crate) fn interrupts(&self) -> u64 {
        interrupts::count(self.vector)
    }

    /// Does the requests, all at once (there may be no more of them than the queue has room for), and waits for all of them.
    ///
    /// # Panics
    /// When one fails.
    pub(crate) fn run(&mut self, operation: Operation, requests: &mut [Request]) {
        self.submit_all(operation, requests);
        self.complete_all(operation, requests);
    }

    /// The first half of [`Self::run`].
    pub(crate) fn submit_all(&mut self, operation: Operation, requests: &mut [Request]) {
        for request in requests.iter_mut() {
            self.submit(operation, request);
        }
    }

    /// The second half of [`Self::run`], for the same requests.
    pub(crate) fn complete_all(&mut self, operation: Operation, requests: &mut [Request]) {
        let mut outstanding = requests.len();
        while outstanding > 0 {
            self.wait_for_interrupt();
            loop {
                // The request to be interrupted again must be visible before the look at the used ring.
                fence(Ordering::SeqCst);
                let Some(token) = self.device.peek_used() else {
                    break;
                };
                let Some(request) = requests
                    .iter_mut()
                    .find(|request| request.token == Some(token))
                else {
                    panic!("the device completed a request that it was not given");
                };
                self.complete(operation, token, request);
                outstanding -= 1;
            }
        }
    }

    /// Waits, without interrupts, until the device has completed something.
    pub(crate) fn wait_for_completion(&mut self) {
        while self.device.peek_used().is_none() {
            core::hint::spin_loop();
        }
    }

    fn submit(&mut self, operation: Operation, request: &mut Request) {
        let sector = request.sector as usize;
        let Request {
            header,
            data,
            response,
            ..
        } = &mut *request;
        // SAFETY: the callers neither touch nor give up the request's memory until it is complete.
        let token = unsafe {
            match operation {
                Operation::Read => self.device.read_blocks_nb(sector, header, data, response),
                Operation::Write => self.device.write_blocks_nb(sector, header, data, response),
            }
        };
        match token {
            Ok(token) => request.token = Some(token),
            Err(error) => panic!("{operation:?} of sector {sector}: {error}"),
        }
    }

    fn complete(&mut self, operation: Operation, token: u16, request: &mut Request) {
        request.token = None;
        let Request {
            header,
            data,
            response,
            sector,
            ..
        } = request;
        // SAFETY: the same memory that `submit` gave for this token.
        let result = unsafe {
            match operation {
                Operation::Read => self
                    .device
                    .complete_read_blocks(token, header, data, response),
                Operation::Write => self
                    .device
                    .complete_write_blocks(token, header, data, response),
            }
        };
        if let Err(error) = result {
            panic!("{operation:?} of sector {sector}: {error}");
        }
    }

    /// In ring 3 without a call into the host: no wait but this one could go unnoticed by the host.
    fn wait_for_interrupt(&mut self) {
        while interrupts::count(self.vector) == self.interrupts_seen {
            core::hint::spin_loop();
        }
        self.interrupts_seen = interrupts::count(self.vector);
    }

    /// Reads one sector.
    pub(crate) fn read_sector(&mut self, sector: u64) -> Vec<u8> {
        let mut requests = [Request::new(sector, 1)];
        self.run(Operation::Read, &mut requests);
        let [request] = requests;
        request.data
    }

    /// Makes everything written durable.
    pub(crate) fn flush(&mut self) {
        if let Err(error) = self.device.flush() {
            panic!("flush: {error}");
        }
    }

    /// Reads or writes `sectors` from `first` on, in requests of `size` sectors, `depth` at a time. `each` sees the data in
    /// order: before it is written, or after it is read.
    pub(crate) fn transfer(
        &mut self,
        operation: Operation,
        sectors: core::ops::Range<u64>,
        size: u64,
        depth: usize,
        mut each: impl FnMut(u64, &mut [u8]),
    ) {
        let mut next = sectors.start;
        while next < sectors.end {
            let mut requests = Vec::with_capacity(depth);
            while requests.len() < depth && next < sectors.end {
                let mut request = Request::new(next, size.min(sectors.end - next));
                next += request.data.len() as u64 / SECTOR_SIZE as u64;
                if operation == Operation::Write {
                    each(request.sector, &mut request.data);
                }
                requests.push(request);
            }
            self.run(operation, &mut requests);
            if operation == Operation::Read {
                requests
                    .iter_mut()
                    .for_each(|request| each(request.sector, &mut request.data));
            }
        }
    }
}
