//! The client against a peer that answers well, badly or not at all.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;

use bulkhead_net_protocol::{
    Channel, Client, ErrorKind, MAX_MESSAGE, Refusal, RefusalKind, Reply, Request, TapInfo,
    TapRequest, decode,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap()
}

fn info() -> TapInfo {
    let mac = "52:54:00:00:00:01".parse().unwrap();
    TapInfo {
        interface: "bhtap0".into(),
        mac,
        mtu: 1500,
        bridge: "bulkhead0".into(),
        subnet: None,
    }
}

/// Starts a helper that answers one request with `reply` and as many files, then waits for the client to hang up.
fn helper(reply: Reply, files: usize) -> (Client, thread::JoinHandle<Request>) {
    let (ours, theirs) = pair();
    let answering = thread::spawn(move || {
        let channel = Channel::new(theirs);
        let request = decode(&channel.receive().unwrap().unwrap().bytes).unwrap();
        let null = File::open("/dev/null").unwrap();
        channel.send(&reply, &vec![null.as_fd(); files]).unwrap();
        assert!(channel.receive().unwrap().is_none(), "the client hangs up");
        request
    });
    (Client::from_socket(ours), answering)
}

#[test]
fn a_lease_has_a_file_per_queue_and_ends_with_its_connection() {
    let (client, helper) = helper(Reply::Tap(info()), 2);
    let wanted = TapRequest {
        queues: 2,
        ..TapRequest::on("default")
    };

    let lease = client.request_tap(&wanted).unwrap();

    assert_eq!(lease.info, info());
    assert_eq!(lease.queues.len(), 2);
    drop(lease);
    assert_eq!(helper.join().unwrap(), Request::Tap(wanted));
}

#[test]
fn files_arrive_usable_and_in_order() {
    let (ours, theirs) = pair();
    let (a, b) = (rustix::pipe::pipe().unwrap(), rustix::pipe::pipe().unwrap());
    let (sender, receiver) = (Channel::new(ours), Channel::new(theirs));
    sender
        .send(&Reply::Tap(info()), &[a.0.as_fd(), b.0.as_fd()])
        .unwrap();
    let files = receiver.receive().unwrap().unwrap().files;
    for (pipe, text) in [(a.1, "first"), (b.1, "second")] {
        File::from(pipe).write_all(text.as_bytes()).unwrap();
    }
    drop((a.0, b.0));
    let mut got = Vec::new();
    for file in files {
        let mut text = String::new();
        File::from(file).read_to_string(&mut text).unwrap();
        got.push(text);
    }
    assert_eq!(got, ["first", "second"]);
}

#[test]
fn a_refusal_is_an_error_with_its_kind_and_words() {
    let refusal = Refusal {
        kind: RefusalKind::UnknownNetwork,
        message: "there is no network \"x\"".into(),
    };
    let (client, helper) = helper(Reply::Refused(refusal), 0);
    let error = client.request_tap(&TapRequest::on("x")).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Refused(RefusalKind::UnknownNetwork)
    );
    assert_eq!(error.to_string(), "there is no network \"x\"");
    helper.join().unwrap();
}

#[test]
fn fewer_files_than_queues_are_refused() {
    let (client, helper) = helper(Reply::Tap(info()), 1);
    let error = client
        .request_tap(&TapRequest {
            queues: 2,
            ..TapRequest::on("default")
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    helper.join().unwrap();
}

#[test]
fn a_message_that_is_too_long_is_refused_and_its_files_closed() {
    let (ours, theirs) = pair();
    rustix::net::send(
        &ours,
        &vec![b' '; MAX_MESSAGE + 1],
        rustix::net::SendFlags::empty(),
    )
    .unwrap();
    let error = Channel::new(theirs).receive().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
}

#[test]
fn a_helper_that_hangs_up_without_answering_is_an_error() {
    let (ours, theirs) = pair();
    let hanging_up = thread::spawn(move || {
        let channel = Channel::new(theirs);
        channel.receive().unwrap().unwrap();
    });
    let error = Client::from_socket(ours)
        .request_tap(&TapRequest::on("default"))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    hanging_up.join().unwrap();
}

#[test]
fn a_socket_where_nothing_listens_is_said_to_be_no_running_helper() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("net-helper.sock");
    let error = Client::connect(&missing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotRunning);
    let line = format!(
        "bulkhead-net-helper is not running: nothing listens on {}",
        missing.display()
    );
    assert_eq!(error.to_string(), line);

    drop(std::os::unix::net::UnixListener::bind(&missing).unwrap());
    assert_eq!(
        Client::connect(&missing).unwrap_err().kind(),
        ErrorKind::NotRunning,
        "left by a dead helper"
    );
}

#[test]
fn another_programs_socket_and_a_path_that_is_too_long_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let stream = dir.path().join("stream.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&stream).unwrap();
    assert_eq!(
        Client::connect(&stream).unwrap_err().kind(),
        ErrorKind::Protocol
    );

    let long = Client::connect(Path::new(&format!("/{}", "x".repeat(108)))).unwrap_err();
    assert!(long.to_string().contains("107 bytes"), "{long}");
}

/// Starts a helper that answers the first requests with `replies`, one each, and then hangs up.
fn replying(replies: Vec<Reply>) -> Client {
    let (ours, theirs) = pair();
    thread::spawn(move || {
        let channel = Channel::new(theirs);
        for reply in replies {
            channel.receive().unwrap().unwrap();
            channel.send(&reply, &[]).unwrap();
        }
    });
    Client::from_socket(ours)
}

#[test]
fn a_hold_that_was_the_last_is_over_when_the_helper_is() {
    let patience = std::time::Duration::from_secs(60);
    for ends in [true, false] {
        let client = replying(vec![Reply::Held, Reply::Released { ends }]);
        let hold = client.request_hold().unwrap().finish().unwrap();
        assert_eq!(hold.release(patience).unwrap(), ends);
    }
}

#[test]
fn a_helper_that_ends_instead_of_an_answer_is_told_from_one_that_answers_nonsense() {
    let hold = replying(vec![Reply::Held])
        .request_hold()
        .unwrap()
        .finish()
        .unwrap();
    let error = hold
        .release(std::time::Duration::from_secs(60))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);

    let pending = replying(vec![Reply::Tap(info())]).request_hold().unwrap();
    assert_eq!(pending.finish().unwrap_err().kind(), ErrorKind::Protocol);
}

#[test]
fn a_helper_that_is_stopped_keeps_no_client_that_releases_its_hold() {
    let (ours, theirs) = pair();
    let helper = Channel::new(theirs);
    let pending = Client::from_socket(ours).request_hold().unwrap();
    helper.send(&Reply::Held, &[]).unwrap();
    let hold = pending.finish().unwrap();

    // It reads no more, and its connection stays open.
    let error = hold.release(std::time::Duration::from_millis(50));

    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert!(
        error.to_string().contains("has not answered for 50ms"),
        "{error}"
    );
}

#[test]
fn a_helper_that_is_stopped_while_it_ends_keeps_no_client() {
    let (ours, theirs) = pair();
    let helper = Channel::new(theirs);
    let pending = Client::from_socket(ours).request_hold().unwrap();
    helper.send(&Reply::Held, &[]).unwrap();
    let hold = pending.finish().unwrap();
    helper.send(&Reply::Released { ends: true }, &[]).unwrap();

    let error = hold.release(std::time::Duration::from_millis(50));

    assert!(error.unwrap_err().to_string().contains("has not answered"));
}
