//! A web server behind the host: in a network namespace of its own, which knows no way back to a guest's network.
//! What reaches it has crossed the host's forwarding and its address translation.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const NAMESPACE: &str = "bulkhead-web";
const HOST_LINK: &str = "bhweb0";
const SERVER_LINK: &str = "bhweb1";
const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const SERVER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const PORT: u16 = 8080;

/// The namespace, the link into it and the server in it; dropping it takes them away.
pub struct WebServer {
    clients: Receiver<IpAddr>,
    _network: Network,
}

struct Network;

impl WebServer {
    /// Serves `page` to whoever asks.
    pub fn start(page: Vec<u8>) -> Result<Self> {
        let network = Network::create()?;
        let (asked, clients) = channel();
        let (started, start) = channel();
        std::thread::spawn(move || {
            let listener = listen_in_namespace();
            let failed = listener.as_ref().err().map(|error| format!("{error:#}"));
            let _ = started.send(failed);
            for stream in listener.iter().flat_map(TcpListener::incoming).flatten() {
                let from = stream.peer_addr().map(|address| address.ip());
                if let (Ok(()), Ok(from)) = (answer(&stream, &page), from) {
                    let _ = asked.send(from);
                }
            }
        });
        match start.recv().context("web server")? {
            None => Ok(Self {
                clients,
                _network: network,
            }),
            Some(error) => bail!("web server: {error}"),
        }
    }

    /// Where the page is.
    pub fn url(&self) -> String {
        format!("http://{SERVER_ADDRESS}:{PORT}/")
    }

    /// The address the next page was asked for from, as the server saw it.
    pub fn client(&self) -> Result<IpAddr> {
        self.clients
            .recv_timeout(Duration::from_secs(10))
            .context("nobody has asked the web server for the page")
    }

    /// The address that the host's own requests, and those it translates, come from.
    pub fn host_address(&self) -> IpAddr {
        HOST_ADDRESS.into()
    }
}

/// Moves this thread into the namespace; the listener stays there.
fn listen_in_namespace() -> Result<TcpListener> {
    let path = format!("/run/netns/{NAMESPACE}");
    let namespace = File::open(&path).context(path)?;
    move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&namespace),
        Some(LinkNameSpaceType::Network),
    )
    .context("enter network namespace")?;
    TcpListener::bind((SERVER_ADDRESS, PORT)).context("listen")
}

fn answer(stream: &TcpStream, page: &[u8]) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = BufReader::new(stream).lines();
    for line in request {
        if line?.is_empty() {
            break;
        }
    }
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        page.len()
    )?;
    stream.write_all(page)
}

impl Network {
    fn create() -> Result<Self> {
        ip(&["netns", "add", NAMESPACE])?;
        let network = Self; // From here on, dropping it cleans up.
        let (host, server) = (format!("{HOST_ADDRESS}/30"), format!("{SERVER_ADDRESS}/30"));
        ip(&[
            "link",
            "add",
            HOST_LINK,
            "type",
            "veth",
            "peer",
            "name",
            SERVER_LINK,
            "netns",
            NAMESPACE,
        ])?;
        ip(&["address", "add", &host, "dev", HOST_LINK])?;
        ip(&["link", "set", HOST_LINK, "up"])?;
        ip(&[
            "-netns",
            NAMESPACE,
            "address",
            "add",
            &server,
            "dev",
            SERVER_LINK,
        ])?;
        ip(&["-netns", NAMESPACE, "link", "set", SERVER_LINK, "up"])?;
        Ok(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The link may not exist yet; the namespace's end would take it away later, but not at once.
        let _ = ip(&["link", "delete", HOST_LINK]);
        if let Err(error) = ip(&["netns", "delete", NAMESPACE]) {
            eprintln!("{error:#}");
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip")?;
    if !output.status.success() {
        bail!(
            "ip {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
