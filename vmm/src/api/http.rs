//! The part of HTTP/1.1 that the API needs: requests of limited length, and responses as Cloud Hypervisor's client
//! reads them.

use serde_json::Value;

const MAX_HEADERS: usize = 32;
/// The longest request line with headers.
const MAX_HEAD: usize = 16 << 10;
/// The longest request with its body.
pub(super) const MAX_REQUEST: usize = 256 << 10;

/// A client's request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) body: Vec<u8>,
    /// Whether the client may send more requests.
    pub(super) keep_alive: bool,
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

/// The status of a request that is refused or has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// The request is not valid.
    BadRequest = 400,
    /// There is no such request, or no guest.
    NotFound = 404,
    /// The guest is in the wrong state.
    NotAllowed = 405,
    /// The request failed.
    Failed = 500,
    /// Cloud Hypervisor's API has the request, and this monitor does not implement it.
    NotImplemented = 501,
}

/// The response.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Response {
    /// 200.
    Json(Value),
    /// 204.
    Done,
    /// A status with a body that is a list of one message.
    Error(Status, String),
}

impl Response {
    /// The message. Its status line has no reason phrase, because Cloud Hypervisor's client takes all after the version
    /// for the number.
    pub(super) fn to_bytes(&self, keep_alive: bool) -> Vec<u8> {
        let (status, body) = match self {
            Self::Json(value) => (200, Some(ascii(value))),
            Self::Done => (204, None),
            Self::Error(status, error) => {
                (*status as u16, Some(ascii(&Value::from(vec![&**error]))))
            }
        };
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let mut message =
            format!("HTTP/1.1 {status} \r\nServer: bulkhead-vmm\r\nConnection: {connection}\r\n");
        if let Some(body) = body {
            let len = body.len();
            message += &format!("Content-Type: application/json\r\nContent-Length: {len}\r\n\r\n");
            message += &body;
        } else {
            message += "\r\n";
        }
        message.into_bytes()
    }
}

/// JSON in ASCII: that client decodes what it reads in pieces, and a piece could end within a character.
fn ascii(value: &Value) -> String {
    let mut text = String::new();
    for character in value.to_string().chars() {
        if character.is_ascii() {
            text.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                text += &format!("\\u{unit:04x}");
            }
        }
    }
    text
}

/// The result of parsing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// The request is not complete. `expects`: the client waits for "100 Continue" before it sends the body.
    Partial { expects: bool },
    /// A request and its length in bytes.
    Complete(Request, usize),
}

/// The first request in `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_bytes = bytes.get(..MAX_HEAD).unwrap_or(bytes);
    let head_len = match head.parse(head_bytes).map_err(|error| error.to_string())? {
        httparse::Status::Partial if bytes.len() >= MAX_HEAD => {
            return Err("the request's head is too long".to_owned());
        }
        httparse::Status::Partial => return Ok(Parsed::Partial { expects: false }),
        httparse::Status::Complete(len) => len,
    };
    let headers = Headers(head.headers);
    if headers.all("transfer-encoding").next().is_some() {
        return Err("a body needs a Content-Length".to_owned());
    }
    let len = head_len.saturating_add(headers.body_len()?);
    if len > MAX_REQUEST {
        return Err("the request is too long".to_owned());
    }
    let modern = head.version == Some(1);
    let Some(body) = bytes.get(head_len..len) else {
        let expects = modern && headers.has("expect", "100-continue");
        return Ok(Parsed::Partial { expects });
    };
    let method = head.method.unwrap_or_default();
    let request = Request {
        method: method.to_owned(),
        path: path(head.path.unwrap_or_default()).to_owned(),
        body: body.to_vec(),
        // HEAD is refused with a body, which its client does not expect, so the connection ends after that.
        keep_alive: modern && method != "HEAD" && !headers.has("connection", "close"),
    };
    Ok(Parsed::Complete(request, len))
}

struct Headers<'h>(&'h [httparse::Header<'h>]);

impl<'h> Headers<'h> {
    fn all(&self, name: &str) -> impl Iterator<Item = &'h str> {
        let named = self
            .0
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name));
        // A value that is not UTF-8 is none of those looked for.
        named.map(|header| std::str::from_utf8(header.value).unwrap_or_default().trim())
    }

    /// Whether `word` is one of the words of the header.
    fn has(&self, name: &str, word: &str) -> bool {
        let mut words = self.all(name).flat_map(|value| value.split(','));
        words.any(|one| one.trim().eq_ignore_ascii_case(word))
    }

    fn body_len(&self) -> Result<usize, String> {
        let mut len = None;
        for text in self.all("content-length") {
            let number = match text.bytes().all(|byte| byte.is_ascii_digit()) {
                true => text.parse().ok(),
                false => None,
            };
            let number: usize = number.ok_or("Content-Length is no number")?;
            if *len.get_or_insert(number) != number {
                return Err("Content-Length is given twice".to_owned());
            }
        }
        Ok(len.unwrap_or(0))
    }
}

/// The path of a request target, which may be a whole URI (RFC 9112, section 3.2.2).
fn path(target: &str) -> &str {
    match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => {
            rest.find('/').map_or("/", |slash| &rest[slash..])
        }
        _ => target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(bytes: &[u8]) -> (Request, usize) {
        match parse(bytes) {
            Ok(Parsed::Complete(request, len)) => (request, len),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_is_parsed_once_it_is_complete() {
        let whole = b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}rest";
        for len in 0..whole.len() - 4 {
            let partial = Ok(Parsed::Partial { expects: false });
            assert_eq!(parse(&whole[..len]), partial, "{len}");
        }
        let (request, len) = complete(whole);
        assert_eq!(&whole[len..], b"rest");
        assert_eq!(
            (request.method.as_str(), request.body.as_slice()),
            ("PUT", &b"{}"[..])
        );
        assert!(request.keep_alive);
    }

    #[test]
    fn what_is_no_http_or_too_long_is_refused() {
        let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(99));
        for wrong in [
            "\0\0\0\0",
            "GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: \r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            &long,
            &many,
        ] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_client_says_whether_it_goes_on() {
        for (head, keeps) in [
            ("HTTP/1.1\r\n", true),
            ("HTTP/1.0\r\n", false),
            ("HTTP/1.1\r\nConnection: close\r\n", false),
            ("HTTP/1.1\r\nConnection: TE, Close\r\n", false),
            ("HTTP/1.1\r\nConnection: keep-alive\r\n", true),
        ] {
            let text = format!("GET /x {head}\r\n");
            assert_eq!(complete(text.as_bytes()).0.keep_alive, keeps, "{text}");
        }
    }

    #[test]
    fn a_client_that_asks_first_is_told_to_go_on() {
        let head = "PUT / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
        let expects = |expects| Ok(Parsed::Partial { expects });
        assert_eq!(parse(head.as_bytes()), expects(true));
        let old = head.replace("1.1", "1.0");
        assert_eq!(parse(old.as_bytes()), expects(false));
        assert_eq!(complete(format!("{head}{{}}").as_bytes()).0.body, b"{}");
    }

    #[test]
    fn a_target_may_be_a_whole_uri() {
        for (target, path) in [
            ("/api/v1/vm.info", "/api/v1/vm.info"),
            ("http://localhost/api/v1/vm.info", "/api/v1/vm.info"),
            ("http://localhost", "/"),
            ("*", "*"),
        ] {
            let text = format!("GET {target} HTTP/1.1\r\n\r\n");
            assert_eq!(complete(text.as_bytes()).0.path, path);
        }
    }

    /// How Cloud Hypervisor's client reads an answer: the number is all between the version and the end of the line,
    /// the header's name is spelled so, the body is as long as it says, and each piece read is UTF-8.
    fn read_as_its_client(bytes: &[u8]) -> (u16, Option<String>) {
        let pieces = bytes
            .chunks(256)
            .map(|piece| std::str::from_utf8(piece).unwrap());
        let text: String = pieces.collect();
        let line = text.strip_prefix("HTTP/1.1").unwrap();
        let status = line[..line.find('\r').unwrap()].trim().parse().unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let header = head.split_once("Content-Length: ").map(|(_, rest)| rest);
        let len = header.map(|rest| rest.split('\r').next().unwrap().parse::<usize>().unwrap());
        assert_eq!(len.unwrap_or(0), body.len());
        (status, len.map(|_| body.to_owned()))
    }

    #[test]
    fn its_own_client_understands_each_answer() {
        let umlauts = "ä".repeat(300) + "𝄞";
        let json = Value::from(umlauts.as_str());
        let (status, body) = read_as_its_client(&Response::Json(json.clone()).to_bytes(true));
        assert_eq!(status, 200);
        assert_eq!(serde_json::from_str::<Value>(&body.unwrap()).unwrap(), json);
        assert_eq!(
            read_as_its_client(&Response::Done.to_bytes(true)),
            (204, None)
        );
        for (error, number) in [
            (Status::BadRequest, 400),
            (Status::NotFound, 404),
            (Status::NotAllowed, 405),
            (Status::Failed, 500),
            (Status::NotImplemented, 501),
        ] {
            let answer = Response::Error(error, umlauts.clone()).to_bytes(false);
            let (status, body) = read_as_its_client(&answer);
            let messages: Vec<String> = serde_json::from_str(&body.unwrap()).unwrap();
            assert_eq!((status, messages), (number, vec![umlauts.clone()]));
        }
    }
}
