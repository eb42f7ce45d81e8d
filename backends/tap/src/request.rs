//! The `ioctl`s, each as a safe function. The crate's only unsafe code.
//!
//! Unsafe is needed because `ioctl` takes any number and any pointer: nothing but this file's pairing of request number
//! and argument type keeps the kernel within the argument.

use std::ffi::c_int;
use std::os::fd::AsFd;

use rustix::io::Result;
use rustix::ioctl::{Getter, IntegerSetter, Opcode, Setter, Updater, ioctl};

/// `struct ifreq`: a name and a union, of which this crate uses the first bytes (flags, MTU, hardware address).
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct IfReq {
    pub(crate) name: [u8; libc::IFNAMSIZ],
    pub(crate) value: [u8; size_of::<libc::ifreq>() - libc::IFNAMSIZ],
}

const _: () = assert!(size_of::<IfReq>() == size_of::<libc::ifreq>());
const _: () = assert!(align_of::<IfReq>() >= align_of::<libc::ifreq>());

impl IfReq {
    pub(crate) fn new(name: [u8; libc::IFNAMSIZ]) -> Self {
        IfReq {
            name,
            value: [0; _],
        }
    }

    pub(crate) fn set<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        for (to, from) in self.value.iter_mut().skip(at).zip(bytes) {
            *to = from;
        }
    }

    pub(crate) fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        for (to, from) in bytes.iter_mut().zip(self.value.iter().skip(at)) {
            *to = *from;
        }
        bytes
    }
}

/// Defines a safe function for an `ioctl` whose argument is of the given shape.
macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident = $op:path: $shape:ident;)*) => {
        $( $(#[$doc])* pub(crate) use $name::call as $name;
           mod $name {
               use super::*;
               const OP: Opcode = $op as Opcode;
               requests!(@ $shape);
           } )*
    };
    // In and out: `struct ifreq`.
    (@ ifreq) => {
        pub(crate) fn call(fd: impl AsFd, request: &mut IfReq) -> Result<()> {
            // SAFETY: the kernel reads and writes one `struct ifreq` for this request; `IfReq` has its size and
            // alignment (asserted above), any bytes are valid in it, and it outlives the call.
            unsafe { ioctl(fd, Updater::<OP, IfReq>::new(request)) }
        }
    };
    // In: a pointer to an int.
    (@ set_int) => {
        pub(crate) fn call(fd: impl AsFd, value: c_int) -> Result<()> {
            // SAFETY: the kernel reads one int for this request, and keeps no pointer to it.
            unsafe { ioctl(fd, Setter::<OP, c_int>::new(value)) }
        }
    };
    // Out: a pointer to an unsigned int.
    (@ get_uint) => {
        pub(crate) fn call(fd: impl AsFd) -> Result<u32> {
            // SAFETY: the kernel writes one unsigned int for this request when it succeeds.
            unsafe { ioctl(fd, Getter::<OP, u32>::new()) }
        }
    };
    // In: the argument itself is the number.
    (@ value) => {
        pub(crate) fn call(fd: impl AsFd, value: usize) -> Result<()> {
            // SAFETY: the kernel takes the argument of this request as a number and follows no pointer.
            unsafe { ioctl(fd, IntegerSetter::<OP>::new_usize(value)) }
        }
    };
}

requests! {
    /// Attaches an open `/dev/net/tun` to an interface, which it creates if need be.
    set_iff = libc::TUNSETIFF: ifreq;
    /// Name and flags of the interface a file is attached to.
    get_iff = libc::TUNGETIFF: ifreq;
    /// The `IFF_` flags the kernel knows.
    get_features = libc::TUNGETFEATURES: get_uint;
    /// Length of the header before each frame.
    set_vnet_hdr_len = libc::TUNSETVNETHDRSZ: set_int;
    /// Whether that header is little-endian whatever the machine is.
    set_vnet_le = libc::TUNSETVNETLE: set_int;
    /// What the reader of frames accepts unfinished.
    set_offload = libc::TUNSETOFFLOAD: value;
    /// Attaches or detaches one queue.
    set_queue = libc::TUNSETQUEUE: ifreq;
    /// Whether the interface outlives its last open file.
    set_persist = libc::TUNSETPERSIST: value;
    get_hwaddr = libc::SIOCGIFHWADDR: ifreq;
    set_hwaddr = libc::SIOCSIFHWADDR: ifreq;
    get_mtu = libc::SIOCGIFMTU: ifreq;
    set_mtu = libc::SIOCSIFMTU: ifreq;
}
