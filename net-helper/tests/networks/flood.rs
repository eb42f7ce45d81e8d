//! A user who connects as fast as possible, and how long others wait meanwhile.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bulkhead_net_protocol::{Request, TapRequest, encode};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, send, sendmsg, socket_with,
};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

use crate::host::{Helper, on_own_host};

/// The user, who is not root.
const USER: u32 = 4242;

/// What the user does with each connection.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// Closes it at once.
    Closes,
    /// Sends a message that is no request, and closes it.
    Sends,
    /// Sends a file before the connection is accepted, and closes it.
    SendsFiles,
    /// Keeps the last few hundred.
    Keeps,
    /// Sends requests until there is no room for more, reads no reply, and keeps the last few dozen.
    Fills,
    /// Only computes, for comparison.
    Computes,
}

struct Flood {
    stop: Arc<AtomicBool>,
    connected: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    fn start(socket: &Path, manner: Manner) -> Flood {
        let (stop, connected) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let threads = (0..2).map(|_| {
            let (stop, connected) = (stop.clone(), connected.clone());
            let address = SocketAddrUnix::new(socket).unwrap();
            std::thread::spawn(move || {
                let (user, group) = (Uid::from_raw(USER), Gid::from_raw(USER));
                set_thread_res_gid(group, group, group).unwrap();
                set_thread_res_uid(user, user, user).unwrap();
                let mut kept = std::collections::VecDeque::new();
                while !stop.load(Ordering::Relaxed) {
                    if let Some(socket) = visit(&address, manner) {
                        connected.fetch_add(1, Ordering::Relaxed);
                        kept.push_back(socket);
                    }
                    let most = match manner {
                        Manner::Keeps => 300,
                        Manner::Fills => 60,
                        _ => 0,
                    };
                    if kept.len() > most {
                        kept.pop_front();
                    }
                }
            })
        });
        Flood {
            threads: threads.collect(),
            stop,
            connected,
        }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.connected.load(Ordering::Relaxed)
    }
}

/// Makes one connection, unless the backlog is full.
fn visit(address: &SocketAddrUnix, manner: Manner) -> Option<OwnedFd> {
    if let Manner::Computes = manner {
        return None;
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    connect(&socket, address).ok()?;
    if let Manner::Sends = manner {
        let _ = send(&socket, b"nonsense", SendFlags::NOSIGNAL);
    }
    if let Manner::Fills = manner {
        let request = encode(&Request::Tap(TapRequest::on("default"))).unwrap();
        while send(&socket, &request, SendFlags::NOSIGNAL).is_ok() {}
    }
    if let Manner::SendsFiles = manner {
        let files = [socket.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&files));
        // The kernel may refuse it.
        let nonsense = [IoSlice::new(b"nonsense")];
        let _ = sendmsg(&socket, &nonsense, &mut control, SendFlags::NOSIGNAL);
    }
    Some(socket)
}

/// How long others waited for a TAP device, sorted. None of their requests may be refused.
fn waits(helper: &Helper, manner: Manner) -> Vec<Duration> {
    let flood = Flood::start(&helper.socket, manner);
    let start = Instant::now();
    let mut waits = Vec::new();
    while start.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        helper.lease(&TapRequest::on("default")).unwrap();
        waits.push(asked.elapsed());
    }
    let connected = flood.end();
    waits.sort();
    let (number, longest) = (waits.len(), waits.last().unwrap());
    println!(
        "{manner:?}: {connected} connections beside {number} requests: median {:?}, longest {longest:?}",
        median(&waits)
    );
    waits
}

fn median(waits: &[Duration]) -> Duration {
    waits[waits.len() / 2]
}

/// How much longer others may wait than beside a user who only computes, on a fast machine and on a slow one, and how
/// many rounds are tried: the other load of this machine is in both figures, but not evenly.
const LONGER: Duration = Duration::from_millis(50);
const TIMES: u32 = 15;
const ROUNDS: usize = 5;

#[test]
fn a_user_who_floods_the_socket_keeps_others_waiting_for_moments_only() {
    on_own_host(
        "flood::a_user_who_floods_the_socket_keeps_others_waiting_for_moments_only",
        || {
            let folder = tempfile::tempdir().unwrap();
            std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
            let helper = Helper::start(folder.path(), "--network dhcp=off");
            std::fs::set_permissions(&helper.socket, PermissionsExt::from_mode(0o666)).unwrap();
            for manner in [
                Manner::Closes,
                Manner::Sends,
                Manner::SendsFiles,
                Manner::Keeps,
                Manner::Fills,
            ] {
                let is_fair = || {
                    let usual = median(&waits(&helper, Manner::Computes));
                    median(&waits(&helper, manner)) < (usual + LONGER).max(usual * TIMES)
                };
                assert!((0..ROUNDS).any(|_| is_fair()), "{manner:?}");
            }
            helper.stop();
        },
    );
}
