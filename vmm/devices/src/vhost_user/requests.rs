//! The requests a frontend makes, as functions (vhost-user specification, "Front-end message types").

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserConfigFlags, VhostUserInflight, VhostUserMemory,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserSingleMemoryRegion,
    VhostUserVringAddr,
};
use vm_memory::ByteValued;
use vmm_sys_util::eventfd::EventFd;

use super::connection::Connection;
use super::error::{Fault, Result};

/// A region of guest RAM as the backend gets it.
pub(super) struct SharedRegion {
    pub(super) guest: u64,
    pub(super) size: u64,
    /// Its address in the address space that vring addresses are in.
    pub(super) user: u64,
    pub(super) offset: u64,
    pub(super) file: RawFd,
}

impl Connection {
    fn request_u64(&self, request: FrontendReq) -> Result<u64> {
        let body = self.request(request, &[])?.body;
        let bytes = <[u8; 8]>::try_from(&*body);
        bytes
            .map(u64::from_ne_bytes)
            .map_err(|_| Fault::Malformed(request, "has the wrong size"))
    }

    fn send_u64(&self, request: FrontendReq, value: u64, fds: &[RawFd]) -> Result<()> {
        self.send_request(request, &value.to_ne_bytes(), fds)
    }

    fn send_vring_state(&self, request: FrontendReq, vring: u16, value: u32) -> Result<()> {
        self.send_request(request, &vring_state(vring, value), &[])
    }

    pub(super) fn features(&self) -> Result<u64> {
        self.request_u64(FrontendReq::GET_FEATURES)
    }

    /// Waits until the backend has processed all requests so far. With REPLY_ACK it has, since each was replied to.
    pub(super) fn sync(&self) -> Result<()> {
        match self.has_reply_ack() {
            true => Ok(()),
            false => self.features().map(drop),
        }
    }

    pub(super) fn set_features(&self, features: u64) -> Result<()> {
        self.send_u64(FrontendReq::SET_FEATURES, features, &[])
    }

    pub(super) fn set_owner(&self) -> Result<()> {
        self.send_request(FrontendReq::SET_OWNER, &[], &[])
    }

    pub(super) fn protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        let bits = self.request_u64(FrontendReq::GET_PROTOCOL_FEATURES)?;
        Ok(VhostUserProtocolFeatures::from_bits_truncate(bits))
    }

    pub(super) fn set_protocol_features(
        &mut self,
        features: VhostUserProtocolFeatures,
    ) -> Result<()> {
        self.send_u64(FrontendReq::SET_PROTOCOL_FEATURES, features.bits(), &[])?;
        if features.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.enable_reply_ack();
        }
        Ok(())
    }

    pub(super) fn queue_num(&self) -> Result<u64> {
        self.request_u64(FrontendReq::GET_QUEUE_NUM)
    }

    pub(super) fn max_mem_slots(&self) -> Result<u64> {
        self.request_u64(FrontendReq::GET_MAX_MEM_SLOTS)
    }

    /// The first `len` bytes of the device's configuration space.
    pub(super) fn config(&self, len: usize) -> Result<Vec<u8>> {
        let request = FrontendReq::GET_CONFIG;
        let mut body = config_header(0, len);
        let header = body.len();
        body.resize(header + len, 0);
        let mut reply = self.request(request, &body)?.body;
        // A backend refuses with an empty payload.
        if reply.len() == header || reply.get(4..8) == Some(&[0; 4]) {
            return Err(Fault::Refused(request));
        }
        if reply.len() != header + len || reply.get(..8) != body.get(..8) {
            return Err(Fault::Malformed(request, "has the wrong size"));
        }
        Ok(reply.split_off(header))
    }

    pub(super) fn set_config(&self, offset: u32, data: &[u8]) -> Result<()> {
        let mut body = config_header(offset, data.len());
        body.extend(data);
        self.send_request(FrontendReq::SET_CONFIG, &body, &[])
    }

    pub(super) fn set_mem_table(&self, regions: &[SharedRegion]) -> Result<()> {
        // The caller passes no more regions than fit in one message.
        let mut body = VhostUserMemory::new(regions.len() as u32)
            .as_slice()
            .to_vec();
        for region in regions {
            let SharedRegion {
                guest,
                size,
                user,
                offset,
                ..
            } = *region;
            body.extend(VhostUserMemoryRegion::new(guest, size, user, offset).as_slice());
        }
        let files: Vec<RawFd> = regions.iter().map(|region| region.file).collect();
        self.send_request(FrontendReq::SET_MEM_TABLE, &body, &files)
    }

    pub(super) fn add_mem_region(&self, region: &SharedRegion) -> Result<()> {
        let SharedRegion {
            guest,
            size,
            user,
            offset,
            file,
        } = *region;
        let body = VhostUserSingleMemoryRegion::new(guest, size, user, offset);
        self.send_request(FrontendReq::ADD_MEM_REG, body.as_slice(), &[file])
    }

    pub(super) fn set_vring_num(&self, vring: u16, size: u16) -> Result<()> {
        self.send_vring_state(FrontendReq::SET_VRING_NUM, vring, size.into())
    }

    pub(super) fn set_vring_base(&self, vring: u16, base: u16) -> Result<()> {
        self.send_vring_state(FrontendReq::SET_VRING_BASE, vring, base.into())
    }

    /// Stops the vring, and returns the index of the next available entry. When the backend replies, it accesses the
    /// vring no more.
    pub(super) fn vring_base(&self, vring: u16) -> Result<u16> {
        let request = FrontendReq::GET_VRING_BASE;
        let body = self.request(request, &vring_state(vring, 0))?.body;
        match *body {
            [a, b, c, d, e, f, _, _] if u32::from_ne_bytes([a, b, c, d]) == u32::from(vring) => {
                Ok(u16::from_ne_bytes([e, f]))
            }
            _ => Err(Fault::Malformed(request, "is not about that vring")),
        }
    }

    pub(super) fn set_vring_addr(&self, address: &VhostUserVringAddr) -> Result<()> {
        self.send_request(FrontendReq::SET_VRING_ADDR, address.as_slice(), &[])
    }

    pub(super) fn set_vring_kick(&self, vring: u16, kick: &EventFd) -> Result<()> {
        let request = FrontendReq::SET_VRING_KICK;
        self.send_u64(request, vring.into(), &[kick.as_raw_fd()])
    }

    pub(super) fn set_vring_call(&self, vring: u16, call: RawFd) -> Result<()> {
        self.send_u64(FrontendReq::SET_VRING_CALL, vring.into(), &[call])
    }

    pub(super) fn set_vring_enable(&self, vring: u16, enable: bool) -> Result<()> {
        self.send_vring_state(FrontendReq::SET_VRING_ENABLE, vring, enable.into())
    }

    pub(super) fn set_backend_req_fd(&self, channel: RawFd) -> Result<()> {
        self.send_request(FrontendReq::SET_BACKEND_REQ_FD, &[], &[channel])
    }

    /// Has the backend allocate memory for the records of requests in flight, and returns it.
    pub(super) fn inflight_fd(
        &self,
        queues: u16,
        queue_size: u16,
    ) -> Result<(VhostUserInflight, OwnedFd)> {
        let request = FrontendReq::GET_INFLIGHT_FD;
        let wish = VhostUserInflight::new(0, 0, queues, queue_size);
        let reply = self.request(request, &inflight_bytes(&wish))?;
        let (Some(area), Some(fd)) = (inflight_from(&reply.body), reply.fd) else {
            return Err(Fault::Malformed(
                request,
                "has no descriptor or the wrong size",
            ));
        };
        if area.mmap_size == 0 {
            return Err(Fault::Refused(request));
        }
        Ok((area, fd))
    }

    pub(super) fn set_inflight_fd(&self, area: &VhostUserInflight, fd: &OwnedFd) -> Result<()> {
        let body = inflight_bytes(area);
        self.send_request(FrontendReq::SET_INFLIGHT_FD, &body, &[fd.as_raw_fd()])
    }
}

fn vring_state(vring: u16, value: u32) -> [u8; 8] {
    let [a, b, c, d] = u32::from(vring).to_ne_bytes();
    let [e, f, g, h] = value.to_ne_bytes();
    [a, b, c, d, e, f, g, h]
}

fn config_header(offset: u32, len: usize) -> Vec<u8> {
    // Configuration spaces have at most 4096 bytes. No flag means that the driver writes, not a migration.
    let header = VhostUserConfig::new(offset, len as u32, VhostUserConfigFlags::empty());
    header.as_slice().to_vec()
}

/// `VhostUserInflight` as all implementations send it: 20 bytes, and 4 bytes of padding of the C structure.
fn inflight_bytes(area: &VhostUserInflight) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24);
    bytes.extend(area.mmap_size.to_ne_bytes());
    bytes.extend(area.mmap_offset.to_ne_bytes());
    bytes.extend(area.num_queues.to_ne_bytes());
    bytes.extend(area.queue_size.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes
}

fn inflight_from(bytes: &[u8]) -> Option<VhostUserInflight> {
    let (words, halves) = (bytes.get(..16)?, bytes.get(16..20)?);
    let (size, offset) = words.split_at_checked(8)?;
    let (queues, queue_size) = halves.split_at_checked(2)?;
    (bytes.len() <= 24).then_some(())?;
    Some(VhostUserInflight::new(
        u64::from_ne_bytes(size.try_into().ok()?),
        u64::from_ne_bytes(offset.try_into().ok()?),
        u16::from_ne_bytes(queues.try_into().ok()?),
        u16::from_ne_bytes(queue_size.try_into().ok()?),
    ))
}
