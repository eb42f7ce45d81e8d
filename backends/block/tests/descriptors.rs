//! Descriptors from a hostile frontend: none of them makes the server wait, and none stays open.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bulkhead_test_frontend::descriptors::{full_pipe, lingering};
use peer::{Backend, Guest, PATIENCE, raw_image};
use rustix::fs::OFlags;
use vhost::VhostBackend;
use vhost::vhost_user::message::FrontendReq;
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const QUEUES: &[&str] = &["--persist", "--num-queues", "2"];

fn server(more: &[&str]) -> (tempfile::TempDir, Backend) {
    let (folder, image) = raw_image(1 << 20);
    let backend = Backend::start(&image, "raw", more);
    (folder, backend)
}

/// How many descriptors the server has open while a frontend is connected that has sent none.
fn open_descriptors(backend: &Backend) -> usize {
    let mut stream = connect(backend);
    stream
        .write_all(&message(FrontendReq::GET_FEATURES, &[]))
        .unwrap();
    stream.read_exact(&mut [0; 20]).unwrap();
    let folder = format!("/proc/{}/fd", backend.child.id());
    std::fs::read_dir(folder).unwrap().count()
}

/// The server serves other frontends, has no more descriptors open than before, and ends on SIGTERM.
fn is_unharmed(mut backend: Backend, descriptors: usize) {
    let mut guest = Guest::connect(&backend, 2);
    assert_eq!(guest.read(9, 512), [9; 512]);
    drop(guest);
    let start = Instant::now();
    loop {
        let now = open_descriptors(&backend);
        if now == descriptors {
            break;
        }
        let patient = start.elapsed() < PATIENCE;
        assert!(patient, "{now} descriptors instead of {descriptors}");
    }
    assert!(backend.is_running());
    ends(backend);
}

/// SIGTERM is served, and at once.
fn ends(backend: Backend) {
    let pid = rustix::process::Pid::from_child(&backend.child);
    let start = Instant::now();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let (status, said) = backend.end();
    assert!(status.success(), "{status}: {said}");
    assert!(start.elapsed() < Duration::from_secs(5), "it took its time");
}

fn message(request: FrontendReq, body: &[u8]) -> Vec<u8> {
    let words = [u32::from(request), 1, body.len() as u32];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend_from_slice(body);
    bytes
}

fn connect(backend: &Backend) -> UnixStream {
    let stream = UnixStream::connect(&backend.socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The server has closed the connection.
fn is_closed(mut stream: &UnixStream) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(0) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        Ok(_) => false,
    }
}

#[test]
fn more_descriptors_than_a_message_may_have_end_the_connection_alone() {
    let (_folder, backend) = server(QUEUES);
    let before = open_descriptors(&backend);
    let event = EventFd::new(0).unwrap();
    let table = message(FrontendReq::SET_MEM_TABLE, &[0; 8 + 32 * 40]);
    for number in [33, 34, 64, 128, 252, 253] {
        for (request, cut) in [
            (&table, table.len()),
            (&message(FrontendReq::GET_FEATURES, &[]), 12),
            (&message(FrontendReq::SET_VRING_CALL, &[0; 8]), 20),
            // The descriptors come with the header or with the body, and the rest of the message follows or never
            // comes.
            (&table, 1),
            (&table, 12),
            (&table, 13),
        ] {
            let stream = connect(&backend);
            let files = vec![event.as_raw_fd(); number];
            stream.send_with_fds(&[&request[..cut]], &files).unwrap();
            assert!(is_closed(&stream), "{number} with {cut} bytes");
        }
    }
    is_unharmed(backend, before);
}

#[test]
fn descriptors_where_none_belong_are_closed() {
    let (_folder, backend) = server(QUEUES);
    let before = open_descriptors(&backend);
    let event = EventFd::new(0).unwrap();
    for bytes in [
        message(FrontendReq::GET_FEATURES, &[]),
        message(FrontendReq::SET_OWNER, &[]),
        message(FrontendReq::SET_VRING_KICK, &0x100u64.to_ne_bytes()),
        message(FrontendReq::SET_MEM_TABLE, &[0; 8]),
    ] {
        // In two parts, each with some.
        for cut in [4, 12] {
            let stream = connect(&backend);
            stream
                .send_with_fds(&[&bytes[..cut]], &[event.as_raw_fd(); 5])
                .unwrap();
            let _ = stream.send_with_fds(&[&bytes[cut..]], &[event.as_raw_fd(); 7]);
            assert!(is_closed(&stream));
        }
    }
    // The frontend disconnects in the middle of a message.
    let stream = connect(&backend);
    stream
        .send_with_fds(&[[1u8; 3].as_slice()], &[event.as_raw_fd(); 20])
        .unwrap();
    drop(stream);
    is_unharmed(backend, before);
}

#[test]
fn sockets_that_hold_sockets_that_hold_sockets_are_closed() {
    let (_folder, backend) = server(QUEUES);
    let before = open_descriptors(&backend);
    let mut bomb: OwnedFd = UnixStream::pair().unwrap().0.into();
    for _ in 0..40 {
        let (inner, outer) = UnixStream::pair().unwrap();
        for _ in 0..8 {
            inner
                .send_with_fds(&[[0u8].as_slice()], &[bomb.as_raw_fd(); 16])
                .unwrap();
        }
        bomb = outer.into();
    }
    for request in [
        message(FrontendReq::GET_FEATURES, &[]),
        message(FrontendReq::SET_VRING_KICK, &0u64.to_ne_bytes()),
    ] {
        for number in [1, 32, 200] {
            let stream = connect(&backend);
            stream
                .send_with_fds(&[&request[..]], &vec![bomb.as_raw_fd(); number])
                .unwrap();
            assert!(is_closed(&stream));
        }
    }
    drop(bomb);
    is_unharmed(backend, before);
}

#[test]
fn a_descriptor_whose_close_waits_stops_neither_messages_nor_the_end() {
    let (_folder, mut backend) = server(QUEUES);
    let mut readers = Vec::new();
    for request in [FrontendReq::SET_VRING_KICK, FrontendReq::GET_FEATURES] {
        let (socket, reader) = lingering(Duration::from_secs(3600));
        readers.push(reader);
        let stream = connect(&backend);
        let body: &[u8] = match request {
            FrontendReq::SET_VRING_KICK => &[0; 8],
            _ => &[],
        };
        stream
            .send_with_fds(&[&message(request, body)[..]], &[socket.as_raw_fd()])
            .unwrap();
        drop(socket);
        assert!(is_closed(&stream));
    }
    let mut guest = Guest::connect(&backend, 2);
    assert_eq!(guest.read(9, 512), [9; 512]);
    assert!(backend.is_running());
    ends(backend);
}

/// A descriptor that pretends to be an eventfd.
fn disguised(fd: impl IntoRawFd) -> EventFd {
    // SAFETY: the descriptor is given up by its owner.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

fn terminal() -> std::fs::File {
    let options = std::fs::File::options().read(true).write(true).clone();
    options.open("/dev/ptmx").unwrap()
}

#[test]
fn only_eventfds_kick_and_are_signalled() {
    let (_folder, backend) = server(QUEUES);
    let before = open_descriptors(&backend);
    let mut guest = Guest::connect(&backend, 2);
    let fifo = tempfile::tempdir().unwrap();
    let fifo = fifo.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let fifo = std::fs::File::options()
        .read(true)
        .write(true)
        .open(fifo)
        .unwrap();
    let (pipe_end, pipe) = full_pipe();
    let (socket_end, socket) = UnixStream::pair().unwrap();
    let timer = rustix::time::timerfd_create(
        rustix::time::TimerfdClockId::Monotonic,
        rustix::time::TimerfdFlags::empty(),
    );
    let fds = [
        disguised(pipe),
        disguised(pipe_end.try_clone().unwrap()),
        disguised(socket),
        disguised(fifo),
        disguised(terminal()),
        disguised(std::fs::File::open("/dev/null").unwrap()),
        disguised(tempfile::tempfile().unwrap()),
        disguised(timer.unwrap()),
        disguised(
            rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap(),
        ),
    ];
    for (number, fd) in fds.iter().enumerate() {
        let frontend = &mut guest.frontend;
        assert!(frontend.set_vring_call(0, fd).is_err(), "call {number}");
        assert!(frontend.set_vring_err(0, fd).is_err(), "err {number}");
        assert!(frontend.set_vring_kick(0, fd).is_err(), "kick {number}");
    }
    // The descriptors that were set before are still in use.
    assert_eq!(guest.request_on(0, VIRTIO_BLK_T_IN, 5, (512, true)), 0);
    drop((guest, socket_end));
    is_unharmed(backend, before);
}

/// Makes the frontend's own eventfd full, and every write to it wait. The server may be signalling it.
fn fill(event: &EventFd) {
    // SAFETY: the descriptor is open: its owner is borrowed.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) };
    rustix::fs::fcntl_setfl(fd, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
    let _ = event.read();
    let _ = event.write(u64::MAX - 1);
    rustix::fs::fcntl_setfl(fd, OFlags::RDWR).unwrap();
}

#[test]
fn a_full_eventfd_that_blocks_is_not_waited_for() {
    for queues in ["1", "2"] {
        let (_folder, backend) = server(&["--persist", "--num-queues", queues]);
        let rings: usize = queues.parse().unwrap();
        let mut guest = Guest::connect(&backend, rings);
        fill(&guest.rings[0].call);
        fill(&guest.rings[0].err);
        for slot in 0..20 {
            let head = guest.post_block(0, slot, (VIRTIO_BLK_T_IN, 3), (512, true));
            guest.kick(0);
            let start = Instant::now();
            while guest.used_index(0) != slot as u16 + 1 {
                assert!(start.elapsed() < PATIENCE, "request {slot}, head {head}");
                std::thread::yield_now();
            }
            guest.frontend.get_features().unwrap();
        }
        // The ring breaks, with an error descriptor that is full, too.
        guest.put_descriptor(0, 100, (0x1000, 0, 0, 0));
        guest.offer(0, 100);
        guest.kick(0);
        guest.frontend.get_features().unwrap();
        if rings == 2 {
            assert_eq!(guest.request_on(1, VIRTIO_BLK_T_IN, 5, (512, true)), 0);
        }
        ends(backend);
    }
}

#[test]
fn a_frontend_that_fills_its_eventfd_as_fast_as_it_can_stops_nothing_for_long() {
    let (_folder, backend) = server(QUEUES);
    let mut guest = Guest::connect(&backend, 2);
    let call = guest.rings[0].call.try_clone().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let race = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            fill(&call);
        }
    });
    for slot in 0..100 {
        let head = guest.post_block(0, slot % 30, (VIRTIO_BLK_T_IN, 3), (512, true));
        guest.kick(0);
        let start = Instant::now();
        while guest.next_used(0).is_none() {
            assert!(start.elapsed() < PATIENCE, "request {slot}, head {head}");
            std::thread::yield_now();
        }
        let chain = guest.chain(0, head);
        guest.reuse(0, chain);
        let call = guest.rings[0].call.try_clone().unwrap();
        guest.frontend.set_vring_call(0, &call).unwrap();
    }
    assert_eq!(guest.request_on(1, VIRTIO_BLK_T_IN, 5, (512, true)), 0);
    stop.store(true, Ordering::Relaxed);
    race.join().unwrap();
    ends(backend);
}

#[test]
fn a_frontend_that_takes_no_answers_is_served_again_when_it_does() {
    let (_folder, backend) = server(&[]);
    let mut stream = connect(&backend);
    stream
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let request = message(FrontendReq::GET_FEATURES, &[]);
    let mut sent = 0;
    // Whole messages only, as many as there is room for on both ways.
    while let Ok(length) =
        rustix::net::send(stream.as_fd(), &request, rustix::net::SendFlags::DONTWAIT).or_else(
            |_| {
                let _ = peer::readable(&stream, Duration::from_millis(100));
                rustix::net::send(stream.as_fd(), &request, rustix::net::SendFlags::DONTWAIT)
            },
        )
    {
        assert_eq!(length, request.len());
        sent += 1;
    }
    let mut answers = vec![0; 20 * sent];
    stream.read_exact(&mut answers).unwrap();
    for answer in answers.chunks(20) {
        assert_eq!(answer[..12], answers[..12]);
    }
    stream.write_all(&request).unwrap();
    stream.read_exact(&mut [0; 20]).unwrap();
    drop(stream);
    let (status, said) = backend.end();
    assert!(status.success(), "{status}: {said}");
}
