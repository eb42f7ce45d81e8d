//! An unmodified Linux on `bulkhead-net`, with QEMU between them, on a network of `bulkhead-net-helper`: the driver
//! that most guests have, and a frontend that is not ours.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bulkhead_tests::guest::{Backend, in_own_namespace, is_installed, pattern};
use bulkhead_tests::guest_linux;
use bulkhead_tests::linux_under_qemu::LinuxUnderQemu;
use bulkhead_tests::workplace::Workplace;

const MAC: &str = "52:54:00:12:34:56";
const GATEWAY: &str = "192.168.124.1";
const PAGE: usize = 8 << 20;

const SCRIPT: &str = r#"
say value mac $(cat /sys/class/net/eth0/address)
say value pairs $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)
ip link set eth0 up
udhcpc -q -n -i eth0 -s /dhcp >/dev/null 2>&1 || fail dhcp
say value gateway $(cat /gateway)
ping -q -c 1 -W 5 $(cat /gateway) >/dev/null || fail ping
for round in 1 2 3; do
  say round $round
  wget -q -O /tmp/page http://$(cat /gateway):8080/ || fail get $round
  say value hash $(sha256sum </tmp/page)
  say value back $(nc $(cat /gateway) 9000 </tmp/page)
done
say value errors $(cat /sys/class/net/eth0/statistics/rx_errors /sys/class/net/eth0/statistics/rx_length_errors)
"#;

/// The arguments for one network card.
fn devices(backend: &Backend, pairs: u32, options: &str) -> Vec<String> {
    let socket = backend.socket().display();
    vec![
        "-chardev".to_owned(),
        format!("socket,id=net,path={socket},reconnect-ms=10"),
        "-netdev".to_owned(),
        format!("vhost-user,id=net,chardev=net,queues={pairs}"),
        "-device".to_owned(),
        format!("virtio-net-pci,netdev=net,mac={MAC},romfile={options}"),
    ]
}

/// A running helper, with the default network.
struct Helper {
    child: Child,
    socket: PathBuf,
}

impl Helper {
    fn start(program: &Path, folder: &Path) -> Self {
        let (socket, notify) = (folder.join("helper.sock"), folder.join("notify"));
        let ready = UnixDatagram::bind(&notify).unwrap();
        ready
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut command = Command::new(program);
        command
            .arg("--socket-path")
            .arg(&socket)
            .arg("--exit-idle")
            .env("NOTIFY_SOCKET", &notify);
        let child = command.spawn().unwrap();
        ready.recv(&mut [0; 16]).expect("the helper becomes ready");
        Self { child, socket }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Gives `page` to who asks for it on one port, and says on another whether it came back as it was. Tells of each
/// page that is half on its way.
fn serve(page: Vec<u8>) -> Receiver<()> {
    let (half, halves) = channel();
    let asked = TcpListener::bind((GATEWAY, 8080)).unwrap();
    let offered = TcpListener::bind((GATEWAY, 9000)).unwrap();
    let wanted = page.clone();
    // What goes wrong with a connection is noticed in the guest.
    std::thread::spawn(move || {
        for stream in asked.incoming() {
            let _ = give(stream.unwrap(), &page, &half);
        }
    });
    std::thread::spawn(move || {
        for stream in offered.incoming() {
            let _ = take(stream.unwrap(), &wanted);
        }
    });
    halves
}

fn give(mut stream: TcpStream, page: &[u8], half: &Sender<()>) -> std::io::Result<()> {
    let mut request = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let length = page.len();
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n"
    )?;
    let (first, rest) = page.split_at(length / 2);
    stream.write_all(first)?;
    let _ = half.send(());
    stream.write_all(rest)
}

fn take(mut stream: TcpStream, page: &[u8]) -> std::io::Result<()> {
    let mut body = Vec::new();
    stream.read_to_end(&mut body)?;
    let same = if body == page { "whole" } else { "different" };
    writeln!(stream, "{same}")
}

/// Runs a guest with a network card of so many pairs of queues and these options, whose backend is killed in each
/// round if that is wanted.
fn goes_to_the_network_and_back(test: &str, pairs: u32, options: &str, killed: bool) {
    let workplace = Workplace::find().unwrap();
    let found = workplace
        .kernel()
        .and_then(|kernel| Ok((kernel, workplace.program("bulkhead-net-helper")?)));
    let (kernel, helper) = match found {
        Ok(found) => found,
        Err(error) => return eprintln!("skipped: {test}: {error:#}"),
    };
    if !is_installed("qemu-system-x86_64", test) || !is_installed("dnsmasq", test) {
        return;
    }
    in_own_namespace(test, || {
        let folder = tempfile::tempdir().unwrap();
        let initramfs = folder.path().join("initramfs");
        guest_linux::build(&kernel, SCRIPT, &[], &initramfs).unwrap();
        let mut helper = Helper::start(&helper, folder.path());
        let page = pattern(3, 0, PAGE);
        let hash = bulkhead_tests::hash::of(&page);
        let halves = serve(page);
        let (socket, count) = (helper.socket.to_str().unwrap(), pairs.to_string());
        let words = [
            "--network",
            "default",
            "--helper-socket",
            socket,
            "--mac",
            MAC,
            "--num-queues",
            &count,
        ];
        let mut backend = Backend::net(folder.path(), "net", &words);

        let mut guest = LinuxUnderQemu::start(
            &kernel.bzimage(),
            &initramfs,
            &devices(&backend, pairs, options),
        );

        guest.expect("up");
        guest.expect(&format!("value mac {MAC}"));
        guest.expect(&format!("value pairs {pairs}"));
        guest.expect(&format!("value gateway {GATEWAY}"));
        for round in 1..=3 {
            guest.expect(&format!("round {round}"));
            let patience = Duration::from_secs(60);
            halves
                .recv_timeout(patience)
                .expect("the guest asks for a page");
            if killed {
                backend.kill_and_restart();
            }
            guest.expect(&format!("value hash {hash} -"));
            guest.expect("value back whole");
        }
        guest.expect("value errors 0 0");
        guest.expect_end();
        let (status, said) = backend.wait();
        assert_eq!((status.code(), said.as_str()), (Some(0), ""));
        // Its last lease was returned.
        assert!(helper.child.wait().unwrap().success());
    });
}

#[test]
fn linux_without_offloads() {
    let off = ",mrg_rxbuf=off,csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,\
               host_tso4=off,host_tso6=off,host_ecn=off,event_idx=off,indirect_desc=off";
    goes_to_the_network_and_back("linux_without_offloads", 1, off, false);
}

#[test]
fn linux_with_two_pairs_of_queues() {
    goes_to_the_network_and_back(
        "linux_with_two_pairs_of_queues",
        2,
        ",mq=on,vectors=6",
        false,
    );
}

#[test]
fn linux_with_all_offloads_goes_on_when_its_network_is_killed() {
    goes_to_the_network_and_back(
        "linux_with_all_offloads_goes_on_when_its_network_is_killed",
        1,
        "",
        true,
    );
}
