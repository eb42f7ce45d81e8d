//! dnsmasq and the processes that start it are killed in every order: DHCP comes back, and no process stays.

use std::time::{Duration, Instant};

use bulkhead_net_protocol::TapRequest;
use rustix::process::{Pid, Signal, kill_process};

use crate::host::{DhcpProcesses, Guest, Helper, dnsmasqs, eventually, on_own_host};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Helper,
    Supervisor,
    Standby,
    Init,
    Dnsmasq,
}
use Victim::{Dnsmasq, Helper as TheHelper, Init, Standby, Supervisor};

impl Victim {
    fn kill(self, helper: &Helper, processes: DhcpProcesses) {
        let pid = match self {
            TheHelper => helper.child.id() as i32,
            Supervisor => processes.supervisor,
            Standby => processes.standby,
            Init => processes.init,
            Dnsmasq => processes.dnsmasq,
        };
        // Gone with another already, perhaps.
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
    }
}

/// Every way to take some of them, one after the other.
fn orders(of: &[Victim]) -> Vec<Vec<Victim>> {
    let mut all = vec![vec![]];
    for &first in of {
        let rest: Vec<_> = of.iter().copied().filter(|v| *v != first).collect();
        all.extend(
            orders(&rest)
                .into_iter()
                .map(|rest| [vec![first], rest].concat()),
        );
    }
    all
}

#[test]
fn whoever_is_killed_dhcp_comes_back_and_nothing_stays() {
    on_own_host(
        "deaths::whoever_is_killed_dhcp_comes_back_and_nothing_stays",
        || {
            let folder = tempfile::tempdir().unwrap();
            let mut all = orders(&[TheHelper, Init, Dnsmasq]);
            assert_eq!(all.len(), 16);
            for inner in [Supervisor, Standby] {
                all.extend([
                    vec![inner],
                    vec![inner, Init],
                    vec![inner, Dnsmasq],
                    vec![TheHelper, inner],
                ]);
            }
            all.push(vec![Supervisor, Standby]);
            all.push(vec![Supervisor, Standby, Init, TheHelper]);
            for victims in all {
                let mut helper = Helper::start(folder.path(), "");
                let processes = DhcpProcesses::wait_for(&[]);
                for victim in &victims {
                    victim.kill(&helper, processes);
                }
                if victims.contains(&TheHelper) {
                    helper.child.wait().unwrap();
                } else if victims.starts_with(&[Supervisor, Standby]) {
                    // Nobody is left to start it.
                    eventually(&format!("{victims:?}: no dnsmasq"), || {
                        dnsmasqs().is_empty()
                    });
                    helper.stop();
                } else {
                    let start = Instant::now();
                    let killed: Vec<_> = match victims[..] {
                        [] => vec![],
                        [Standby] => vec![processes.standby],
                        [Supervisor, ..] => processes.all()[..3].to_vec(),
                        _ => vec![processes.dnsmasq, processes.init],
                    };
                    DhcpProcesses::wait_for(&killed);
                    assert!(
                        start.elapsed() < Duration::from_secs(5),
                        "{victims:?}: {:?}",
                        start.elapsed()
                    );
                    helper.stop();
                    assert_eq!(dnsmasqs(), [0; 0], "{victims:?}");
                }
            }
            // A helper that starts at once after the last one serves.
            let helper = Helper::start(folder.path(), "");
            Guest::new(&helper, &TapRequest::on("default")).dhcp(folder.path());
            helper.stop();
            assert!(dnsmasqs().is_empty());
        },
    );
}

#[test]
fn whoever_is_killed_by_dnsmasqs_name_dhcp_comes_back() {
    on_own_host(
        "deaths::whoever_is_killed_by_dnsmasqs_name_dhcp_comes_back",
        || {
            let folder = tempfile::tempdir().unwrap();
            let helper = Helper::start(folder.path(), "");
            for _ in 0..3 {
                let processes = DhcpProcesses::wait_for(&[]);
                // As `pkill -9 -f dnsmasq` does, among the processes of this test.
                let named = processes.all().into_iter().filter(|pid| {
                    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
                    line.windows(7).any(|word| word == b"dnsmasq")
                });
                let named: Vec<_> = named.collect();
                assert!(
                    named.contains(&processes.dnsmasq),
                    "{processes:?}: {named:?}"
                );
                for pid in &named {
                    let _ = kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL);
                }
                DhcpProcesses::wait_for(&named);
            }
            Guest::new(&helper, &TapRequest::on("default")).dhcp(folder.path());
            helper.stop();
            assert!(dnsmasqs().is_empty());
        },
    );
}

#[test]
fn without_a_helper_dnsmasq_ends_by_itself() {
    on_own_host("deaths::without_a_helper_dnsmasq_ends_by_itself", || {
        let folder = tempfile::tempdir().unwrap();
        Helper::start(folder.path(), "").kill();
        eventually("dnsmasq ends", || dnsmasqs().is_empty());
    });
}

#[test]
fn a_supervisor_that_is_stopped_keeps_no_helper_from_its_end() {
    let test = "deaths::a_supervisor_that_is_stopped_keeps_no_helper_from_its_end";
    on_own_host(test, || {
        let folder = tempfile::tempdir().unwrap();
        let said = folder.path().join("said");
        let options = format!("--state-dir {}/state", folder.path().display());
        let helper = Helper::start_writing(&said, folder.path(), &options);
        let supervisor = DhcpProcesses::wait_for(&[]).supervisor;
        let signal = |signal| kill_process(Pid::from_raw(supervisor).unwrap(), signal);
        signal(Signal::STOP).unwrap();
        let start = Instant::now();
        helper.signal(Signal::TERM);
        helper.wait_for_the_end();
        let (took, said) = (start.elapsed(), std::fs::read_to_string(said).unwrap());
        assert!(took < Duration::from_secs(30), "{took:?}");
        assert!(said.contains(&format!("process {supervisor})")), "{said}");
        // The kernel may have woken it already.
        let _ = signal(Signal::CONT);
        eventually("dnsmasq ends", || dnsmasqs().is_empty());
        Helper::start(folder.path(), &options).stop();
    });
}
