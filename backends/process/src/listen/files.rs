//! Refusing files that clients send.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `SO_PASSRIGHTS`, which libc does not have yet.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Has the kernel refuse the files that are sent to a Unix socket, or to what is accepted from it later: their sender
/// gets `EPERM`. Before Linux 6.16 it does not, and nothing changes.
///
/// # Errors
/// When the kernel says that it is no Unix socket.
pub fn refuse_files(socket: &impl AsFd) -> io::Result<()> {
    let off: libc::c_int = 0;
    #[allow(clippy::cast_possible_truncation, reason = "the size of an int is 4")]
    let length = size_of_val(&off) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `off`, which live until the call returns. Neither the standard library
    // nor rustix has it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const off).cast(),
            length,
        )
    };
    if result == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(()),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::mem::MaybeUninit;
    use std::os::fd::OwnedFd;

    use rustix::io::Errno;
    use rustix::net::{
        RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        accept, connect, recvmsg, sendmsg,
    };

    use super::*;

    fn send_file(socket: &OwnedFd) -> Result<usize, Errno> {
        let null = std::fs::File::open("/dev/null").unwrap();
        let files = [null.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        sendmsg(
            socket,
            &[IoSlice::new(b"x")],
            &mut control,
            SendFlags::empty(),
        )
    }

    /// Whether the kernel can refuse files.
    fn is_new() -> bool {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release
            .split(['.', '-'])
            .map_while(|number| number.parse().ok());
        let (major, minor): (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
        (major, minor) >= (6, 16)
    }

    #[test]
    fn files_are_refused_before_and_after_a_connection_is_accepted_and_can_be_sent_to_its_client() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (listener, _file) = super::super::Listen::default()
            .seqpacket()
            .at(&path)
            .unwrap()
            .into_parts();
        refuse_files(&listener).unwrap();
        let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
        let (family, kind) = (
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
        );
        let client = rustix::net::socket(family, kind, None).unwrap();
        connect(&client, &address).unwrap();
        let before = send_file(&client);
        let ours = accept(&listener).unwrap();
        let after = send_file(&client);
        if is_new() {
            assert_eq!((before, after), (Err(Errno::PERM), Err(Errno::PERM)));
        }

        send_file(&ours).unwrap();

        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&client, &mut [], &mut control, RecvFlags::empty()).unwrap();
        assert_eq!(control.drain().count(), 1);
    }

    #[test]
    fn a_socket_that_takes_no_files_anyway_is_an_error_on_a_new_kernel() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(refuse_files(&socket).is_err(), is_new());
    }
}
