//! A server on the network's gateway that returns each datagram with every bit inverted, and counts what every guest
//! has sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

/// What has come from a guest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic {
    /// Every datagram.
    pub(crate) datagrams: usize,
    /// Those that came once more: the guest did not get the answer.
    pub(crate) repeated: usize,
    /// The numbers of the last ones.
    recent: BTreeSet<u64>,
}

/// The server.
pub(crate) struct Peer(Arc<Mutex<BTreeMap<IpAddr, Traffic>>>);

impl Peer {
    /// Serves for as long as the test runs, on every address there will be.
    pub(crate) fn serve() -> Self {
        let socket = UdpSocket::bind("0.0.0.0:7").unwrap();
        let traffic = Arc::<Mutex<BTreeMap<IpAddr, Traffic>>>::default();
        let shared = traffic.clone();
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                let datagram = &mut buffer[..length];
                let number = u64::from_le_bytes(*datagram.first_chunk().unwrap());
                shared
                    .lock()
                    .unwrap()
                    .entry(from.ip())
                    .or_default()
                    .add(number);
                datagram.iter_mut().for_each(|byte| *byte = !*byte);
                // The guest may be gone, or its network.
                let _ = socket.send_to(datagram, from);
            }
        });
        Self(traffic)
    }

    pub(crate) fn of(&self, guest: IpAddr) -> Traffic {
        let traffic = self.0.lock().unwrap();
        traffic.get(&guest).cloned().unwrap_or_default()
    }

    pub(crate) fn forget(&self, guest: IpAddr) {
        self.0.lock().unwrap().remove(&guest);
    }
}

impl Traffic {
    fn add(&mut self, number: u64) {
        if number == 0 {
            // A guest that has just booted.
            self.recent.clear();
        }
        self.datagrams += 1;
        self.repeated += usize::from(!self.recent.insert(number));
        if self.recent.len() > 64 {
            self.recent.pop_first();
        }
    }
}
