//! A client of the monitor's API: HTTP on a Unix socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

/// How long the monitor may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer that is read. A monitor that was taken over may send anything.
const LONGEST: u64 = 1 << 20;

/// Sends a `PUT` request without a body.
///
/// # Errors
/// When the monitor is gone, or refuses it.
pub(crate) fn put(socket: &Path, name: &str) -> anyhow::Result<()> {
    request(socket, "PUT", name).map(drop)
}

/// Sends a request without a body, and returns the body of the response.
fn request(socket: &Path, method: &str, name: &str) -> anyhow::Result<Vec<u8>> {
    let gone = || format!("the monitor does not answer on {}", socket.display());
    let mut stream = UnixStream::connect(socket).with_context(gone)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = format!(
        "{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).with_context(gone)?;
    let mut response = BufReader::new(stream.take(LONGEST));
    let status = next_line(&mut response).with_context(gone)?;
    let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
    let mut length = 0;
    loop {
        let line = next_line(&mut response).with_context(gone)?;
        if line.is_empty() {
            break;
        }
        if let Some((key, value)) = line.split_once(':')
            && key.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = Vec::new();
    response
        .take(length)
        .read_to_end(&mut body)
        .with_context(gone)?;
    match status {
        Some(200..=299) => Ok(body),
        _ => bail!("{}", reason(&body)),
    }
}

fn next_line(from: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

/// What the monitor says in the body of a response that refuses.
fn reason(body: &[u8]) -> String {
    match serde_json::from_slice::<Vec<String>>(body) {
        Ok(lines) if !lines.is_empty() => lines.join(": "),
        _ => String::from_utf8_lossy(body).trim().to_owned(),
    }
}
