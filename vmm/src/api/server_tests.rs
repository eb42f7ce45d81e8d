use serde_json::Value;

use super::*;

struct Api {
    server: Server,
    folder: tempfile::TempDir,
}

fn echo(request: &Request) -> Reply {
    match request.path.as_str() {
        "/later" => Reply::Later,
        path => Reply::Now(Response::Json(Value::from(path))),
    }
}

impl Api {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::new(&folder.path().join("api.sock"), &Broker::none()).unwrap();
        Self { server, folder }
    }

    fn connect(&mut self) -> UnixStream {
        let client = UnixStream::connect(self.folder.path().join("api.sock")).unwrap();
        self.server.handle(ApiEvent::Connection, echo);
        self.server.tidy();
        client
    }

    /// Handles what each client has sent or can take, once.
    fn turn(&mut self) {
        for number in 0..self.server.clients.len() {
            self.server.handle(ApiEvent::Client(number), echo);
        }
        self.server.tidy();
    }

    /// What a client that sends `text` and no more is answered.
    fn ask(&mut self, text: &str) -> String {
        let mut client = self.connect();
        client.write_all(text.as_bytes()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        while !self.server.clients.is_empty() {
            self.turn();
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Lets `client` have waited for so long.
    fn age(&mut self, client: usize, time: Duration) {
        self.server.clients[client].since -= time;
    }
}

#[test]
fn requests_on_one_connection_are_answered_in_order() {
    let mut api = Api::new();

    let answer = api.ask("GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n");

    assert_eq!(answer.matches("HTTP/1.1 200 \r\n").count(), 2, "{answer}");
    assert!(answer.find("/1").unwrap() < answer.find("/2").unwrap());
}

#[test]
fn a_request_without_end_is_cut_off() {
    for endless in [
        format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(MAX_REQUEST / 2)),
        format!("GET / HTTP/1.1\r\nContent-Length: {MAX_REQUEST}\r\n\r\n"),
    ] {
        let answer = Api::new().ask(&endless);
        assert!(answer.starts_with("HTTP/1.1 400 \r\n"), "{answer}");
    }
}

#[test]
fn what_follows_a_request_to_close_is_not_answered() {
    for first in ["HTTP/1.0\r\n", "HTTP/1.1\r\nConnection: close\r\n"] {
        let answer = Api::new().ask(&format!("GET /1 {first}\r\nGET /2 HTTP/1.1\r\n\r\n"));
        assert_eq!(answer.matches("HTTP/1.1 200 \r\n").count(), 1, "{answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"));
    }
}

#[test]
fn silent_clients_shut_nobody_out() {
    let mut api = Api::new();
    let mut silent: Vec<_> = (0..MAX_CLIENTS).map(|_| api.connect()).collect();
    // The third was answered a moment ago.
    silent[2].write_all(b"GET /3 HTTP/1.1\r\n\r\n").unwrap();
    api.turn();

    let mut newest = api.connect();
    newest.write_all(b"GET /new HTTP/1.1\r\n\r\n").unwrap();
    api.turn();

    let mut answer = [0; 12];
    newest.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert_eq!(
        silent[0].read(&mut answer).unwrap(),
        0,
        "the oldest is gone"
    );
    silent[2].read_exact(&mut answer).unwrap();
    assert_eq!(api.server.clients.len(), MAX_CLIENTS);
}

#[test]
fn a_client_has_its_time_and_sending_a_little_does_not_lengthen_it() {
    let mut api = Api::new();
    assert_eq!(api.server.deadline(), None);
    let mut client = api.connect();
    client.write_all(b"GET / HTT").unwrap();
    api.turn();
    assert!(api.server.deadline().unwrap() <= Instant::now() + PATIENCE);

    api.age(0, PATIENCE);
    client.write_all(b"P").unwrap();
    api.turn();

    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert_eq!(api.server.deadline(), None);
}

#[test]
fn a_client_that_reads_slowly_gets_all_and_one_that_does_not_read_is_forgotten() {
    let mut api = Api::new();
    let mut client = api.connect();
    // Far more answers than the socket holds.
    let mut asked = 0;
    client.set_nonblocking(true).unwrap();
    while api.server.clients[0].unsent.is_empty() {
        client.write_all(b"GET /answer HTTP/1.1\r\n\r\n").unwrap();
        asked += 1;
        api.turn();
    }
    client.write_all(b"GET /last HTTP/1.1\r\n\r\n").unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\"/last\"") {
        let mut bytes = [0; 4096];
        if let Ok(len) = client.read(&mut bytes) {
            seen.extend_from_slice(&bytes[..len]);
        }
        api.turn();
    }
    let text = String::from_utf8(seen).unwrap();
    assert_eq!(text.matches("\"/answer\"").count(), asked);

    while api.server.clients[0].unsent.is_empty() {
        client.write_all(b"GET /answer HTTP/1.1\r\n\r\n").unwrap();
        api.turn();
    }
    api.age(0, PATIENCE);
    api.turn();
    assert!(api.server.clients.is_empty());
}

#[test]
fn what_comes_after_a_request_that_takes_its_time_waits_for_it() {
    let mut api = Api::new();
    let mut client = api.connect();
    client
        .write_all(b"PUT /later HTTP/1.1\r\n\r\nGET /next HTTP/1.1\r\n\r\n")
        .unwrap();
    api.turn();
    api.age(0, PATIENCE);
    api.server.tidy();
    let mut events = Vec::new();
    api.server.sources(|event, _, _| events.push(event));
    assert_eq!(events, [ApiEvent::Connection]);

    api.server.resolve(&Response::Done, echo);

    let mut bytes = [0; 4096];
    let len = client.read(&mut bytes).unwrap();
    let text = std::str::from_utf8(&bytes[..len]).unwrap();
    let (first, second) = text.split_once("\r\n\r\n").unwrap();
    assert!(first.starts_with("HTTP/1.1 204 \r\n") && second.ends_with("\"/next\""));
}

#[test]
fn a_client_that_asks_before_it_sends_a_body_is_answered_once() {
    let mut api = Api::new();
    let mut client = api.connect();
    let head = b"PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    client.write_all(head).unwrap();
    api.turn();
    let mut answer = [0; CONTINUE.len()];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, CONTINUE);
    client.write_all(b"{").unwrap();
    api.turn();
    client.write_all(b"}").unwrap();
    api.turn();
    let mut answer = [0; 13];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 ");
}
