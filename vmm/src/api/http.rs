//! HTTP/1.1 on a Unix socket, as far as the API needs it: bounded, and never waiting for a client.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::PollFlags;
use serde_json::Value;

use crate::console::listen;

const MAX_CLIENTS: usize = 16;
const MAX_HEADERS: usize = 32;
/// The longest request, head and body.
const MAX_REQUEST: usize = 64 << 10;

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) body: Vec<u8>,
    /// Whether the client wants to ask more.
    keep_alive: bool,
}

#[cfg(test)]
impl Request {
    pub(crate) fn new(method: &str, path: &str, body: &[u8]) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            body: body.to_vec(),
            keep_alive: true,
        }
    }
}

/// The answer.
#[derive(Debug, PartialEq)]
pub(crate) enum Response {
    /// 200.
    Json(Value),
    /// 204.
    Done,
    /// 400: the request makes no sense.
    Bad(String),
    /// 404: there is nothing of that name, or not for this method.
    NotFound,
    /// 500: what was asked for failed, or cannot be done now.
    Failed(String),
}

impl Response {
    fn to_bytes(&self) -> Vec<u8> {
        let list = |error: &str| Some(Value::from(vec![error]).to_string());
        let (status, body) = match self {
            Self::Json(value) => ("200 OK", Some(value.to_string())),
            Self::Done => ("204 No Content", None),
            Self::Bad(error) => ("400 Bad Request", list(error)),
            Self::NotFound => ("404 Not Found", list("there is no such request")),
            Self::Failed(error) => ("500 Internal Server Error", list(error)),
        };
        let mut head = format!("HTTP/1.1 {status}\r\nServer: bulkhead-vmm\r\n");
        if let Some(body) = body {
            let len = body.len();
            head += &format!("Content-Type: application/json\r\nContent-Length: {len}\r\n\r\n");
            head += &body;
        } else {
            head += "\r\n";
        }
        head.into_bytes()
    }
}

/// What the event loop is to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ApiEvent {
    /// Somebody connects.
    Connection,
    /// This client has sent something.
    Client(usize),
}

/// The API's socket and who is connected to it. The socket is removed when it is dropped.
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
    clients: Vec<Client>,
}

struct Client {
    stream: UnixStream,
    /// What has come of the next request.
    partial: Vec<u8>,
    gone: bool,
}

impl Server {
    /// Listens at `path`, which must not exist.
    pub(crate) fn new(path: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            listener: listen(path)?,
            path: path.to_owned(),
            clients: Vec::new(),
        })
    }

    /// Where it listens.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Calls `add` for everything to wait for.
    pub(crate) fn sources<'a>(&'a self, mut add: impl FnMut(ApiEvent, BorrowedFd<'a>, PollFlags)) {
        if self.clients.len() < MAX_CLIENTS {
            add(ApiEvent::Connection, self.listener.as_fd(), PollFlags::IN);
        }
        for (number, client) in self.clients.iter().enumerate() {
            add(
                ApiEvent::Client(number),
                client.stream.as_fd(),
                PollFlags::IN,
            );
        }
    }

    /// Does what `event` asks for; `answer` answers requests. To be followed by [`Self::tidy`], which changes the
    /// clients' numbers, once all events at hand are handled.
    pub(crate) fn handle(&mut self, event: ApiEvent, answer: impl FnMut(&Request) -> Response) {
        match event {
            ApiEvent::Connection => {
                if let Ok((stream, _)) = self.listener.accept()
                    && stream.set_nonblocking(true).is_ok()
                {
                    self.clients.push(Client {
                        stream,
                        partial: Vec::new(),
                        gone: false,
                    });
                }
            }
            ApiEvent::Client(number) => {
                if let Some(client) = self.clients.get_mut(number) {
                    client.gone |= client.serve(answer).is_none();
                }
            }
        }
    }

    /// Forgets the clients that have gone.
    pub(crate) fn tidy(&mut self) {
        self.clients.retain(|client| !client.gone);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Who removed it before has done the same.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Client {
    /// Answers what has come. `None` when this client is done with.
    fn serve(&mut self, mut answer: impl FnMut(&Request) -> Response) -> Option<()> {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => return None,
            Ok(len) => self.partial.extend(bytes.iter().take(len)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Some(()),
            Err(_) => return None,
        }
        loop {
            match parse(&self.partial) {
                Ok(Some((request, len))) => {
                    self.partial.drain(..len);
                    self.send(&answer(&request))?;
                    request.keep_alive.then_some(())?;
                }
                Ok(None) if self.partial.len() > MAX_REQUEST => {
                    let _ = self.send(&Response::Bad("the request is too long".to_owned()));
                    return None;
                }
                Ok(None) => return Some(()),
                Err(error) => {
                    let _ = self.send(&Response::Bad(error));
                    return None;
                }
            }
        }
    }

    /// A client whose socket has no room for an answer does not read: it is given up.
    fn send(&mut self, response: &Response) -> Option<()> {
        self.stream.write_all(&response.to_bytes()).ok()
    }
}

/// The first request in `bytes` and its length, if it is complete.
fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, String> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_len = match head.parse(bytes).map_err(|error| error.to_string())? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(len) => len,
    };
    let find = |name: &str| {
        let header = head
            .headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case(name));
        header.map(|header| {
            String::from_utf8_lossy(header.value)
                .trim()
                .to_ascii_lowercase()
        })
    };
    if find("transfer-encoding").is_some() {
        return Err("a body needs a Content-Length".to_owned());
    }
    let body_len: usize = match find("content-length") {
        None => 0,
        Some(text) => text
            .parse()
            .map_err(|_| "Content-Length is no number".to_owned())?,
    };
    let len = head_len.saturating_add(body_len);
    if len > MAX_REQUEST {
        return Err("the request is too long".to_owned());
    }
    let Some(body) = bytes.get(head_len..len) else {
        return Ok(None);
    };
    let request = Request {
        method: head.method.unwrap_or_default().to_owned(),
        path: head.path.unwrap_or_default().to_owned(),
        body: body.to_vec(),
        keep_alive: head.version == Some(1) && find("connection").as_deref() != Some("close"),
    };
    Ok(Some((request, len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_parsed_once_it_is_complete() {
        let whole = b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}rest";
        for len in 0..whole.len() - 4 {
            assert_eq!(parse(&whole[..len]), Ok(None), "{len}");
        }
        let (request, len) = parse(whole).unwrap().unwrap();
        assert_eq!(&whole[len..], b"rest");
        assert_eq!(
            (request.method.as_str(), request.body.as_slice()),
            ("PUT", &b"{}"[..])
        );
        assert!(request.keep_alive);
    }

    #[test]
    fn what_is_no_http_or_too_long_is_refused() {
        for wrong in [
            "\0\0\0\0",
            "GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    fn ask(path: &Path, text: &str) -> String {
        let mut server = Server::new(path).unwrap();
        let mut client = UnixStream::connect(path).unwrap();
        client.write_all(text.as_bytes()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        server.handle(ApiEvent::Connection, |_| Response::NotFound);
        while !server.clients.is_empty() {
            server.handle(ApiEvent::Client(0), |request| {
                Response::Json(Value::from(request.path.as_str()))
            });
            server.tidy();
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn requests_on_one_connection_are_answered_in_order_and_the_socket_goes_with_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");

        let answer = ask(&path, "GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n");

        let bodies: Vec<_> = answer
            .lines()
            .filter_map(|line| line.split_once('"'))
            .collect();
        assert_eq!(answer.matches("200 OK").count(), 2, "{answer}");
        assert!(answer.find("/1").unwrap() < answer.find("/2").unwrap());
        assert!(!bodies.is_empty());
        assert!(!path.exists());
    }

    #[test]
    fn a_request_without_end_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(MAX_REQUEST));

        let answer = ask(&path, &endless);

        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
}
