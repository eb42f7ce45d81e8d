//! The guests that run, as their supervisors note them in the runtime folder.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::runtime;
use crate::supervise::control::{Request, Response, SOCKET};
use crate::supervise::{self, state::State};

/// How long a supervisor may take to respond. The longest it does is to end a guest whose processes do not end.
const PATIENCE: Duration = Duration::from_secs(60);

/// All guests of this user that run, in the order of their ids. Supervisors that were killed are replaced.
pub(crate) fn all(base: &Path) -> Vec<State> {
    let mut states: Vec<State> = names(base)
        .iter()
        .filter_map(|name| get(base, name))
        .collect();
    states.sort_by_key(|state| state.id);
    states
}

/// The guest of this name, if it runs. A supervisor that was killed is replaced.
pub(crate) fn get(base: &Path, name: &str) -> Option<State> {
    let state = State::read(&base.join(name)).ok()??;
    if state.supervisor.is_alive() {
        return Some(state);
    }
    let runs = state.processes.iter().filter_map(|process| process.id);
    if state.foreground || !runs.into_iter().any(|id| id.is_alive()) {
        return None;
    }
    match supervise::adopt(name) {
        Ok(state) => Some(state),
        // Another command has replaced it first.
        Err(_) => State::read(&base.join(name)).ok()?,
    }
}

/// Gives a guest that begins its id, and writes its state into its folder, so that no other guest gets the same one.
///
/// # Errors
/// When the state cannot be written.
pub(crate) fn register(base: &Path, folder: &Path, state: &mut State) -> anyhow::Result<()> {
    runtime::with_lock(base, || {
        state.id = free_id(base);
        state.write(folder)
    })
}

/// The lowest id that no guest has, above those of all that run.
fn free_id(base: &Path) -> u32 {
    let names = names(base);
    let states = names
        .iter()
        .filter_map(|name| State::read(&base.join(name)).ok()?);
    states
        .map(|state| state.id)
        .max()
        .unwrap_or(0)
        .saturating_add(1)
}

/// The names of the folders of guests.
pub(crate) fn names(base: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(base) else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// Sends a request to the supervisor of a guest, and returns the result.
///
/// # Errors
/// When the guest does not run, or the supervisor refuses the request.
pub(crate) fn request(base: &Path, name: &str, request: &Request) -> anyhow::Result<Value> {
    let (_, result) = connect(base, name, request)?;
    Ok(result)
}

/// Sends a request to the supervisor of a guest, and returns the connection, too, which carries what follows.
///
/// # Errors
/// When the guest does not run, or the supervisor refuses the request.
pub(crate) fn connect(
    base: &Path,
    name: &str,
    request: &Request,
) -> anyhow::Result<(UnixStream, Value)> {
    let path = base.join(name).join(SOCKET);
    let gone = || format!("the supervisor of guest '{name}' does not respond");
    let mut stream = UnixStream::connect(path).with_context(gone)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).with_context(gone)?;
    // Nothing after the line may be taken from the socket.
    let mut line = String::new();
    BufReader::with_capacity(1, &stream)
        .read_line(&mut line)
        .with_context(gone)?;
    if line.is_empty() {
        bail!("the supervisor of guest '{name}' has ended");
    }
    let response: Response = serde_json::from_str(&line).with_context(gone)?;
    stream.set_read_timeout(None)?;
    Ok((stream, response.result()?))
}
