//! How processes end, as the kernel itself reports it (the process event connector), not their parent.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use netlink_sys::protocols::NETLINK_CONNECTOR;
use netlink_sys::{Socket, SocketAddr};

/// `linux/connector.h`, `linux/cn_proc.h`.
const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
const PROC_CN_MCAST_LISTEN: u32 = 1;
const PROC_EVENT_EXEC: u32 = 0x0000_0002;
const PROC_EVENT_EXIT: u32 = 0x8000_0000;
const NLMSG_DONE: u16 = 3;

/// Listens to the starts and ends of processes.
pub struct ExitWatch {
    socket: Socket,
    programs: BTreeMap<u32, PathBuf>,
}

/// The end of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// What it ran.
    pub program: PathBuf,
    /// Its process id.
    pub pid: u32,
    /// The status as `wait` gives it: 0 for `exit(0)`, the low seven bits for a signal.
    pub status: u32,
}

impl ExitWatch {
    /// Starts listening. Needs CAP_NET_ADMIN.
    pub fn start() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_CONNECTOR).context("connector socket")?;
        socket
            .bind(&SocketAddr::new(0, CN_IDX_PROC))
            .context("listen to process events")?;
        socket.set_non_blocking(true).context("connector socket")?;
        // nlmsghdr { len, type, flags, seq, pid }, cn_msg { idx, val, seq, ack, len, flags }, the operation.
        let mut message = Vec::new();
        message.extend(40u32.to_ne_bytes());
        message.extend(NLMSG_DONE.to_ne_bytes());
        message.extend([0; 10]);
        for word in [CN_IDX_PROC, CN_VAL_PROC, 0, 0] {
            message.extend(word.to_ne_bytes());
        }
        message.extend(4u16.to_ne_bytes());
        message.extend([0; 2]);
        message.extend(PROC_CN_MCAST_LISTEN.to_ne_bytes());
        socket
            .send_to(&message, &SocketAddr::new(0, 0), 0)
            .context("ask for process events")?;
        Ok(Self {
            socket,
            programs: BTreeMap::new(),
        })
    }

    /// Takes in what has happened since the last call; to be called often enough to still see what a new process runs.
    pub fn poll(&mut self) -> Result<Vec<Exit>> {
        let mut exits = Vec::new();
        loop {
            let mut buffer = Vec::with_capacity(4096);
            match self.socket.recv_from(&mut buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(exits),
                Err(error) => bail!("process events: {error}"),
            }
            // After the two headers: what, cpu, timestamp, then the event's own part.
            let word = |index: usize| {
                let bytes = buffer.get(36 + 4 * index..40 + 4 * index)?;
                Some(u32::from_ne_bytes(bytes.try_into().ok()?))
            };
            match (word(0), word(4), word(5), word(6)) {
                (Some(PROC_EVENT_EXEC), _, Some(pid), _) => {
                    if let Ok(program) = std::fs::read_link(format!("/proc/{pid}/exe")) {
                        self.programs.insert(pid, program);
                    }
                }
                (Some(PROC_EVENT_EXIT), Some(thread), Some(pid), Some(status)) if thread == pid => {
                    if let Some(program) = self.programs.remove(&pid) {
                        exits.push(Exit {
                            program,
                            pid,
                            status,
                        });
                    }
                }
                _ => {}
            }
        }
    }
}
