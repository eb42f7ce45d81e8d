//! The socket on which processes report that they are ready, as to a service manager (sd_notify(3)).

use std::fs::Permissions;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use crossbeam_channel::Sender;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::event::Event;

/// Listens on a socket for `$NOTIFY_SOCKET`, and sends [`Event::Ready`] for each process that reports there.
pub(crate) fn listen(folder: &Path, events: Sender<Event>) -> io::Result<PathBuf> {
    let path = folder.join("notify.sock");
    // That of a supervisor that was killed; this one holds the folder's lock.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixDatagram::bind(&path)?;
    // A process needs write permission to report, whatever the umask is.
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    set_socket_passcred(&socket, true)?;
    std::thread::Builder::new()
        .name("ready".into())
        .spawn(move || {
            while let Ok(message) = receive(&socket) {
                if let Some(pid) = message
                    && events.send(Event::Ready(pid)).is_err()
                {
                    return;
                }
            }
        })
        .map_err(|error| io::Error::new(error.kind(), format!("cannot start a thread: {error}")))?;
    Ok(path)
}

/// The process id of the next message's sender, if that is ready. The id comes from the kernel.
fn receive(socket: &UnixDatagram) -> io::Result<Option<u32>> {
    let mut text = [0; 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut text)],
        &mut control,
        RecvFlags::empty(),
    )?
    .bytes;
    let ready = text.get(..length).is_some_and(|text| {
        text.split(|&byte| byte == b'\n')
            .any(|line| line == b"READY=1")
    });
    let sender = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(sender) => {
            u32::try_from(sender.pid.as_raw_nonzero().get()).ok()
        }
        _ => None,
    });
    Ok(sender.filter(|_| ready))
}
