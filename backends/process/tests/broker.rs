//! The broker, asked by a program that is confined itself. Each case runs in a process of its own.

#![allow(clippy::unwrap_used)]

mod alone;
#[allow(dead_code)]
mod stopped;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use alone::{Case, again};
use bulkhead_process::broker::Broker;
use bulkhead_process::confine::Confinement;
use bulkhead_process::listen::listen;
use rustix::process::{Pid, Signal, kill_process};

const CASES: &[Case] = &[
    (
        "a_confined_program_reaches_its_peers_again_and_again",
        a_confined_program_reaches_its_peers_again_and_again,
    ),
    (
        "a_sealed_broker_learns_of_nothing_more",
        a_sealed_broker_learns_of_nothing_more,
    ),
    (
        "files_go_at_an_orderly_end_and_stay_when_it_is_killed",
        files_go_at_an_orderly_end_and_stay_when_it_is_killed,
    ),
    (
        "a_broker_that_is_gone_or_stopped_is_named_with_what_it_leaves",
        a_broker_that_is_gone_or_stopped_is_named_with_what_it_leaves,
    ),
    ("a_successors_file_stays", a_successors_file_stays),
    (
        "folders_go_at_the_end_if_they_are_empty_then",
        folders_go_at_the_end_if_they_are_empty_then,
    ),
    (
        "what_came_since_the_checkpoint_is_forgotten",
        what_came_since_the_checkpoint_is_forgotten,
    ),
    (
        "what_it_keeps_is_open_until_the_program_has_ended",
        what_it_keeps_is_open_until_the_program_has_ended,
    ),
    (
        "it_inherits_nothing_and_is_confined_itself",
        it_inherits_nothing_and_is_confined_itself,
    ),
];

const FOLDER: &str = "BULKHEAD_TEST_FOLDER";

fn main() {
    match std::env::var("BULKHEAD_TEST_CASE").as_deref() {
        Ok("serve") => serve(),
        _ => alone::main(CASES),
    }
}

fn a_confined_program_reaches_its_peers_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    let foreign = folder.path().join("foreign");
    let _foreign = UnixListener::bind(&foreign).unwrap();
    let mut broker = Broker::start().unwrap();
    let peers = [&one, &other].map(|path| broker.peer(path).unwrap());
    let missing = broker.connect(peers[0]).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    broker.seal().unwrap();

    for _ in 0..3 {
        let _ = fs::remove_file(&one);
        let listener = UnixListener::bind(&one).unwrap();
        let mut connected = broker.connect(peers[0]).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.write_all(b"hello").unwrap();
        let mut seen = [0; 5];
        connected.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"hello");
    }
    let dead = broker.connect(peers[0]).unwrap_err();
    assert_eq!(dead.kind(), io::ErrorKind::ConnectionRefused);

    let listener = UnixListener::bind(&other).unwrap();
    Confinement::new().enter().unwrap();
    assert!(broker.connect(peers[1]).is_ok());
    assert!(listener.accept().is_err(), "accept4 is not allowed here");
    assert!(UnixStream::connect(&foreign).is_err());
}

fn a_sealed_broker_learns_of_nothing_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let file = folder.path().join("kernel");
    fs::write(&file, "bytes").unwrap();
    let mut broker = Broker::start().unwrap();
    let mut read = String::new();
    let mut opened = broker.open(&file).unwrap();
    opened.read_to_string(&mut read).unwrap();
    assert_eq!(read, "bytes");
    assert!(opened.write(b"x").is_err());
    let absent = broker.open(&folder.path().join("absent")).unwrap_err();
    assert_eq!(absent.kind(), io::ErrorKind::NotFound);

    broker.seal().unwrap();

    let refused = io::ErrorKind::PermissionDenied;
    assert_eq!(broker.open(&file).unwrap_err().kind(), refused);
    assert_eq!(broker.peer(&path).unwrap_err().kind(), refused);
    assert_eq!(broker.seal().unwrap_err().kind(), refused);
    let (fd, _) = io::pipe().unwrap();
    assert_eq!(broker.keep(fd.into()).unwrap_err().kind(), refused);
    let file = listen(&path).unwrap().into_parts().1;
    assert_eq!(broker.remove_at_end(file).unwrap_err().kind(), refused);
}

fn what_came_since_the_checkpoint_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut broker = Broker::start().unwrap();
    let (_api, file) = listen(&path("api")).unwrap().into_parts();
    broker.remove_at_end(file).unwrap();
    let before = broker.peer(&path("api")).unwrap();
    broker.checkpoint().unwrap();
    // More often than the broker has room for names.
    for _ in 0..5000 {
        let (_serial, file) = listen(&path("serial")).unwrap().into_parts();
        broker.remove_at_end(file).unwrap();
        let since = broker.peer(&path("serial")).unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        broker.keep(writer.into()).unwrap();
        assert!(broker.connect(since).is_ok());

        broker.rollback().unwrap();

        assert!(!path("serial").exists());
        assert!(broker.connect(since).is_err());
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "it was closed");
    }
    assert!(broker.connect(before).is_ok() && path("api").exists());
    broker.end();
    assert!(!path("api").exists());
}

/// A confined program with a socket and a lease. It reports when it is ready, and ends on request.
fn serve() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let (_socket, file) = listen(&folder.join("s")).unwrap().into_parts();
    let mut broker = Broker::start().unwrap();
    broker.remove_at_end(file).unwrap();
    let lease = UnixStream::connect(folder.join("lease")).unwrap();
    broker.keep(lease.into()).unwrap();
    broker.seal().unwrap();
    Confinement::new().enter().unwrap();
    let mut out = io::stdout();
    out.write_all(b"serving\n").unwrap();
    out.flush().unwrap();
    io::stdin().read_exact(&mut [0]).unwrap();
    broker.end();
}

struct Program {
    child: Child,
    stdin: ChildStdin,
    lease: UnixStream,
    socket: PathBuf,
}

impl Program {
    fn start(folder: &Path) -> Self {
        let listener = UnixListener::bind(folder.join("lease")).unwrap();
        let mut child = again("serve")
            .env(FOLDER, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "serving\n");
        Self {
            stdin: child.stdin.take().unwrap(),
            child,
            lease: listener.accept().unwrap().0,
            socket: folder.join("s"),
        }
    }

    fn broker(&self) -> u32 {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        children.trim().parse().unwrap()
    }

    /// Has it end in order. Returns what it wrote to standard error.
    fn end_with_warnings(&mut self) -> String {
        self.stdin.write_all(b"\n").unwrap();
        assert!(self.child.wait().unwrap().success());
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        said
    }

    /// Has it end in order.
    fn end(mut self) {
        assert_eq!(self.end_with_warnings(), "");
        assert_eq!(self.lease.read(&mut [0]).unwrap(), 0, "the lease is over");
    }
}

fn files_go_at_an_orderly_end_and_stay_when_it_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let program = Program::start(folder.path());
    let socket = program.socket.clone();
    let broker = program.broker();
    assert!(socket.exists());
    program.end();
    assert!(!socket.exists());
    let state = fs::read_to_string(format!("/proc/{broker}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");

    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::start(folder.path());
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    assert_eq!(program.lease.read(&mut [0]).unwrap(), 0, "the broker ended");
    assert!(program.socket.exists());
}

fn a_broker_that_is_gone_or_stopped_is_named_with_what_it_leaves() {
    for signal in [Signal::KILL, Signal::STOP] {
        let folder = tempfile::tempdir().unwrap();
        let mut program = Program::start(folder.path());
        let broker = Pid::from_raw(program.broker() as i32).unwrap();
        kill_process(broker, signal).unwrap();
        if signal == Signal::KILL {
            assert_eq!(program.lease.read(&mut [0]).unwrap(), 0, "it has ended");
        }

        let start = Instant::now();
        let said = program.end_with_warnings();

        assert!(start.elapsed() < Duration::from_secs(9), "{signal:?}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("warning: the broker process "), "{said}");
        assert!(said.contains(program.socket.to_str().unwrap()), "{said}");
        assert!(program.socket.exists());
        let _ = kill_process(broker, Signal::KILL);
    }
}

fn a_successors_file_stays() {
    let folder = tempfile::tempdir().unwrap();
    let program = Program::start(folder.path());
    let socket = program.socket.clone();
    fs::remove_file(&socket).unwrap();
    let _successor = UnixListener::bind(&socket).unwrap();
    program.end();
    assert!(socket.exists());
}

fn folders_go_at_the_end_if_they_are_empty_then() {
    let place = tempfile::tempdir().unwrap();
    let outer = place.path().join("outer");
    let (inner, used) = (outer.join("inner"), place.path().join("used"));
    fs::create_dir_all(&inner).unwrap();
    fs::create_dir(&used).unwrap();
    let file = inner.join("file");
    fs::write(&file, "x").unwrap();
    fs::write(used.join("file"), "of another").unwrap();
    let mut broker = Broker::start().unwrap();
    for folder in [&inner, &outer, &used] {
        broker.remove_folder_at_end(folder).unwrap();
    }
    broker.seal().unwrap();

    broker.remove_now().unwrap();
    assert!(file.exists(), "what is not empty stays for now");
    fs::remove_file(&file).unwrap();
    broker.end();

    assert!(!outer.exists());
    assert!(used.join("file").exists());
}

fn what_it_keeps_is_open_until_the_program_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let program = Program::start(folder.path());
    program.lease.set_nonblocking(true).unwrap();
    let mut lease = &program.lease;
    let open = lease.read(&mut [0]).unwrap_err();
    assert_eq!(open.kind(), io::ErrorKind::WouldBlock);
    let folder = format!("/proc/{}/fd", program.child.id());
    let open = fs::read_dir(folder).unwrap();
    let open = open.map(|entry| fs::read_link(entry.unwrap().path()).unwrap());
    let sockets = open.filter(|file| file.to_str().unwrap().starts_with("socket:"));
    assert_eq!(
        sockets.count(),
        2,
        "one listens, one is the broker's; the lease is not here"
    );
    program.lease.set_nonblocking(false).unwrap();
    program.end();
}

fn it_inherits_nothing_and_is_confined_itself() {
    let folder = tempfile::tempdir().unwrap();
    let program = Program::start(folder.path());
    let broker = program.broker();
    let name = fs::read_to_string(format!("/proc/{broker}/comm")).unwrap();
    assert_eq!(name, "bulkhead-broker\n");
    // The connection to the program, the socket's folder, the lease.
    let open = fs::read_dir(format!("/proc/{broker}/fd")).unwrap().count();
    assert_eq!(open, 3);
    assert_eq!(stopped::status(broker, "NoNewPrivs:"), "1");
    assert_eq!(stopped::status(broker, "Seccomp:"), "2");
    // The calls that it may make have effect only on the paths that it was given; the other calls it may not make.
    if let Some(intruded) = stopped::Stopped::attach(broker, "the broker") {
        let its_own = ["socket(AF_UNIX)", "connect"];
        let needless = stopped::NEEDLESS.iter();
        let needless: Vec<_> = needless
            .filter(|call| !its_own.contains(&call.0))
            .copied()
            .collect();
        intruded.is_refused(&needless);
    }
    program.end();
}
