//! dnsmasq and the processes that start it are killed in every order: DHCP comes back, and no process stays.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use bulkhead_net_protocol::TapRequest;
use rustix::process::{Pid, Signal, kill_process};

use crate::host::{
    DhcpProcesses, Guest, Helper, command, dnsmasqs, eventually, on_own_host, run, traces,
};

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
        // It may have ended with another one that was killed before.
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
                    // No process is left that could start dnsmasq.
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

#[test]
fn a_signal_at_any_moment_of_the_start_leaves_nothing() {
    let test = "deaths::a_signal_at_any_moment_of_the_start_leaves_nothing";
    on_own_host(test, || {
        let folder = tempfile::tempdir().unwrap();
        let before = traces(folder.path());
        // The signal comes at many moments of a start. A helper that has not blocked it yet has created nothing.
        for moment in (0..120).step_by(4) {
            for signal in [Signal::TERM, Signal::HUP] {
                let mut helper = command(folder.path(), "").spawn().unwrap();
                std::thread::sleep(Duration::from_millis(moment));
                kill_process(Pid::from_child(&helper), signal).unwrap();

                let status = helper.wait().unwrap();

                let by_signal = status.signal() == Some(signal.as_raw());
                assert!(status.success() || by_signal, "{moment} ms: {status}");
                assert_eq!(traces(folder.path()), before, "{moment} ms: {status}");
            }
        }
    });
}

#[test]
fn a_helper_whose_broker_was_killed_ends_and_names_what_it_leaves() {
    let test = "deaths::a_helper_whose_broker_was_killed_ends_and_names_what_it_leaves";
    on_own_host(test, || {
        let folder = tempfile::tempdir().unwrap();
        let said = folder.path().join("said");
        let mut helper = Helper::start_writing(&said, folder.path(), "");
        let pid = helper.child.id();
        let children = run(&format!("cat /proc/{pid}/task/{pid}/children"));
        let is_broker = |pid: &&str| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() == "bulkhead-broker\n"
        };
        let broker = children.split_whitespace().find(is_broker).unwrap();
        run(&format!("kill -9 {broker}"));

        helper.signal(Signal::TERM);

        assert_eq!(helper.child.wait().unwrap().code(), Some(1));
        let said = std::fs::read_to_string(said).unwrap();
        let (socket, state) = (helper.socket.display(), folder.path().join("net-helper"));
        let named = format!("error: cannot remove {socket} and {}: ", state.display());
        assert!(said.starts_with(&named), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(dnsmasqs().is_empty() && !run("ip -o link").contains("bulkhead0"));
        // The next helper replaces both, and removes them at its end.
        Helper::start(folder.path(), "").stop();
        assert!(!state.exists());
    });
}
