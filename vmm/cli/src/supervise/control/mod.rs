//! The supervisor's socket, `control.sock` in the guest's folder: one request a connection, one line of JSON each way.
//!
//! Each connection has a thread, since a request may wait for the monitor. The guest's folder admits only its owner, so
//! clients are trusted with the guest; a bound on their number keeps the supervisor alive.

mod server;

use anyhow::bail;
use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::state::{Reason, RunState};
use crate::guest::definition::MetadataChange;
pub(super) use server::serve;

/// The socket's name in the guest's folder.
pub(crate) const SOCKET: &str = "control.sock";

/// What a client can ask for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// The state of the guest.
    State,
    /// Ends the guest at once. `graceful`: without SIGKILL.
    Destroy { graceful: bool },
    /// Presses the guest's power button.
    Shutdown,
    /// Presses it, and starts the guest again once it is off.
    Reboot,
    /// Resets the guest, as its reset button would.
    Reset,
    /// Stops the guest's CPUs.
    Suspend,
    /// Lets them run on.
    Resume,
    /// Changes a text about the guest, until it ends.
    SetMetadata { change: MetadataChange },
    /// Makes the connection the guest's console. `force`: in the place of another client.
    Console { force: bool, terminal: String },
    /// Has a line sent for each change of the guest's state.
    Events,
}

/// The answer to a request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Response {
    Ok(Value),
    Error(String),
}

impl Response {
    /// The result of the request.
    ///
    /// # Errors
    /// What the supervisor says was wrong.
    pub(crate) fn result(self) -> anyhow::Result<Value> {
        match self {
            Self::Ok(value) => Ok(value),
            Self::Error(error) => bail!("{error}"),
        }
    }
}

/// A change of a guest's state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) name: String,
    pub(crate) state: RunState,
    pub(crate) reason: Reason,
}

/// A request as the supervisor's main thread gets it.
#[derive(Debug)]
pub(crate) enum Order {
    State,
    Destroy {
        graceful: bool,
    },
    /// The guest is to be started again when it is off.
    RestartWhenOff,
    /// The order before is withdrawn, since the guest could not be asked to shut down.
    StayOff,
    SetMetadata(MetadataChange),
    Subscribe(Subscriber),
}

/// A client that gets each change.
#[derive(Debug)]
pub(crate) struct Subscriber {
    pub(super) changes: Sender<Change>,
    /// Disconnected once the last change is written, or the client is gone.
    pub(super) written: Receiver<()>,
}

/// By which the main thread responds to an order.
#[derive(Debug)]
pub(crate) struct Responder {
    response: Sender<Response>,
    written: Receiver<()>,
}

/// The other end of a [`Responder`].
struct Pending {
    response: Receiver<Response>,
    _written: Sender<()>,
}

fn responder() -> (Responder, Pending) {
    let (response, pending) = bounded(1);
    let (sender, written) = bounded(0);
    let pending = Pending {
        response: pending,
        _written: sender,
    };
    (Responder { response, written }, pending)
}

impl Responder {
    pub(super) fn respond(self, response: Response) -> Receiver<()> {
        // It fails when the client is gone.
        let _ = self.response.send(response);
        self.written
    }
}
