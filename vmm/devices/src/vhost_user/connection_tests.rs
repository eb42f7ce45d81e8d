use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::thread;

use proptest::prelude::*;
use vhost::vhost_user::message::VhostUserInflight;

use super::*;

/// A peer that reads one request and answers with these bytes, then waits for the end.
fn peer(answer: Vec<u8>) -> Connection {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let mut request = [0; 12];
        if theirs.read_exact(&mut request).is_ok() {
            let _ = theirs.write_all(&answer);
            let _ = theirs.read_to_end(&mut Vec::new());
        }
    });
    Connection::new(ours)
}

fn message(request: u32, flags: u32, size: u32, body: &[u8]) -> Vec<u8> {
    let header = [request, flags, size]
        .into_iter()
        .flat_map(u32::to_ne_bytes);
    header.chain(body.iter().copied()).collect()
}

fn open_path(path: &Path) -> Result<Connection> {
    let own = path.to_owned();
    Connection::open(path, &(Box::new(move || connect(&own)) as Connector))
}

fn fault<T>(result: Result<T>) -> String {
    result.err().unwrap().to_string()
}

#[test]
fn what_is_wrong_with_the_path_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let open = |path: &Path| fault(open_path(path));
    assert!(open(&path).contains("no such socket"));
    assert!(open(&path).contains("does it serve another monitor already?"));
    std::fs::write(&path, "").unwrap();
    assert_eq!(open(&path), "not a socket");
    assert_eq!(open(folder.path()), "not a socket");
    std::fs::remove_file(&path).unwrap();
    let long = folder.path().join("x".repeat(120));
    assert!(open(&long).contains("too long"));
    drop(UnixListener::bind(&path).unwrap());
    assert!(open(&path).contains("nobody listens"));
    assert!(open_path(Path::new("a\0b")).is_err());
}

#[test]
fn a_peer_that_keeps_silent_is_not_waited_for_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let error = fault(open_path(&path).unwrap().features());
    assert!(
        error.contains("did not answer GET_FEATURES in time"),
        "{error}"
    );
}

#[test]
fn a_peer_that_does_not_take_its_messages_is_not_waited_for_for_ever() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let connection = Connection::new(ours);
    let error = loop {
        if let Err(error) = connection.set_config(0, &[0; 4000]) {
            break error;
        }
    };
    assert!(
        matches!(error, Fault::TimedOut(FrontendReq::SET_CONFIG)),
        "{error}"
    );
}

#[test]
fn answers_that_are_none_are_refused() {
    let number = 7_u64.to_ne_bytes();
    for (answer, why) in [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            "has another request's number",
        ),
        (message(2, 5, 8, &number), "has another request's number"),
        (message(1, 1, 8, &number), "is no reply"),
        (message(1, 6, 8, &number), "is no reply"),
        (message(1, 5, 0, &[]), "has the wrong size"),
        (message(1, 5, 16, &[0; 16]), "has the wrong size"),
        (message(1, 5, 4097, &[0; 4097]), "is too long"),
        (message(1, 5, u32::MAX, &number), "is too long"),
    ] {
        let error = fault(peer(answer).features());
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(peer(message(1, 5, 8, &number)).features().unwrap(), 7);
}

#[test]
fn a_refusal_leaves_the_connection_usable() {
    let mut connection = peer(message(11, 5, 8, &1_u64.to_ne_bytes()));
    connection.enable_reply_ack();
    let error = connection
        .send_request(FrontendReq::GET_VRING_BASE, &[], &[])
        .unwrap_err();
    assert!(matches!(error, Fault::Refused(FrontendReq::GET_VRING_BASE)));
}

#[test]
fn configuration_replies_are_checked() {
    let config = |offset: u32, size: u32, content: &[u8]| {
        let header = [offset, size, 0].into_iter().flat_map(u32::to_ne_bytes);
        let body: Vec<u8> = header.chain(content.iter().copied()).collect();
        peer(message(24, 5, body.len() as u32, &body)).config(4)
    };
    assert_eq!(config(0, 4, &[1, 2, 3, 4]).unwrap(), [1, 2, 3, 4]);
    assert!(matches!(config(0, 0, &[]), Err(Fault::Refused(_))));
    assert!(matches!(config(0, 0, &[0; 4]), Err(Fault::Refused(_))));
    assert!(matches!(config(0, 4, &[1; 5]), Err(Fault::Malformed(..))));
    assert!(matches!(config(1, 4, &[1; 4]), Err(Fault::Malformed(..))));
    assert!(matches!(config(0, 3, &[1; 3]), Err(Fault::Malformed(..))));
}

#[test]
fn notes_on_requests_in_flight_come_with_a_descriptor_or_not_at_all() {
    let reply = |size: u64| {
        let mut body = size.to_ne_bytes().to_vec();
        body.resize(24, 0);
        message(31, 5, 24, &body)
    };
    assert!(matches!(
        peer(reply(4096)).inflight_fd(1, 64),
        Err(Fault::Malformed(..))
    ));
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let answer = reply(4096);
    thread::spawn(move || {
        theirs.read_exact(&mut [0; 36]).unwrap();
        let file = tempfile::tempfile().unwrap();
        // One too many: the other is closed.
        let fds = [file.as_raw_fd(), file.as_raw_fd()];
        theirs.send_with_fds(&[&answer[..]], &fds).unwrap();
    });
    let (area, _fd) = Connection::new(ours).inflight_fd(1, 64).unwrap();
    let VhostUserInflight { mmap_size, .. } = area;
    assert_eq!(mmap_size, 4096);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes back, each request ends with a value or a fault.
    #[test]
    fn hostile_answers_are_survived(request in 1..45_u32, flags in 0..16_u32, size in 0..64_u32, body in prop::collection::vec(any::<u8>(), 0..64)) {
        let answer = || message(request, flags | 1, size, &body[..body.len().min(size as usize)]);
        // Closing early ends the wait.
        let closing = || {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            theirs.write_all(&answer()).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            (Connection::new(ours), theirs)
        };
        let _ = closing().0.features();
        let _ = closing().0.config(8);
        let _ = closing().0.vring_base(0);
        let _ = closing().0.inflight_fd(1, 1);
    }
}
