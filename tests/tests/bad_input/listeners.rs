//! Sockets on which somebody listens who is not who was expected.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketType, accept, bind, listen, send, socket,
};

/// Something that is neither vhost-user nor JSON, and longer than any header.
const NOISE: [u8; 4096] = [0xa5; 4096];

/// Makes them all in a folder. They serve as long as the test runs.
pub(crate) fn serve(folder: &Path) {
    stream(&folder.join("http"), |mut peer| {
        let mut request = [0; 12];
        peer.read_exact(&mut request)?;
        peer.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    });
    stream(&folder.join("noise"), |mut peer| {
        peer.write_all(&NOISE)?;
        until_closed(peer)
    });
    stream(&folder.join("silent"), until_closed);
    stream(&folder.join("hangs-up"), |_| Ok(()));
    packets(&folder.join("noise-packets"), |peer| {
        send(&peer, &NOISE, SendFlags::NOSIGNAL)?;
        until_closed(peer.into())
    });
    packets(&folder.join("silent-packets"), |peer| {
        until_closed(peer.into())
    });
}

/// Reads, and says nothing, until the other side has gone.
fn until_closed(mut peer: UnixStream) -> std::io::Result<()> {
    std::io::copy(&mut peer, &mut std::io::sink()).map(drop)
}

fn stream(path: &Path, answer: fn(UnixStream) -> std::io::Result<()>) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for peer in listener.incoming().flatten() {
            // That a peer goes away in the middle is what it should do.
            thread::spawn(move || drop(answer(peer)));
        }
    });
}

/// The same with packets, as the helper's clients expect them.
fn packets(path: &Path, answer: fn(OwnedFd) -> std::io::Result<()>) {
    let listener = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    bind(&listener, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(&listener, 8).unwrap();
    thread::spawn(move || {
        while let Ok(peer) = accept(&listener) {
            thread::spawn(move || drop(answer(peer)));
        }
    });
}
