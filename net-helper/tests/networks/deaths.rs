//! dnsmasq and what sees to it, killed in every way: DHCP comes back, and nothing stays.

use std::time::{Duration, Instant};

use bulkhead_net_protocol::TapRequest;
use rustix::process::{Pid, Signal, kill_process};

use crate::host::{Family, Guest, Helper, dnsmasqs, eventually, on_own_host};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Helper,
    Launcher,
    Standby,
    Keeper,
    Dnsmasq,
}
use Victim::{Dnsmasq, Helper as TheHelper, Keeper, Launcher, Standby};

impl Victim {
    fn kill(self, helper: &Helper, family: Family) {
        let pid = match self {
            TheHelper => helper.child.id() as i32,
            Launcher => family.launcher,
            Standby => family.standby,
            Keeper => family.keeper,
            Dnsmasq => family.dnsmasq,
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
            let mut all = orders(&[TheHelper, Keeper, Dnsmasq]);
            assert_eq!(all.len(), 16);
            for inner in [Launcher, Standby] {
                all.extend([
                    vec![inner],
                    vec![inner, Keeper],
                    vec![inner, Dnsmasq],
                    vec![TheHelper, inner],
                ]);
            }
            all.push(vec![Launcher, Standby]);
            all.push(vec![Launcher, Standby, Keeper, TheHelper]);
            for victims in all {
                let mut helper = Helper::start(folder.path(), "");
                let family = Family::of(&helper, &[]);
                for victim in &victims {
                    victim.kill(&helper, family);
                }
                if victims.contains(&TheHelper) {
                    helper.child.wait().unwrap();
                } else if victims.starts_with(&[Launcher, Standby]) {
                    // Nobody is left to start it.
                    eventually(&format!("{victims:?}: no dnsmasq"), || {
                        dnsmasqs().is_empty()
                    });
                    helper.stop();
                } else {
                    let start = Instant::now();
                    let killed: Vec<_> = match victims[..] {
                        [] => vec![],
                        [Standby] => vec![family.standby],
                        [Launcher, ..] => family.all()[..3].to_vec(),
                        _ => vec![family.dnsmasq, family.keeper],
                    };
                    Family::of(&helper, &killed);
                    assert!(
                        start.elapsed() < Duration::from_secs(5),
                        "{victims:?}: {:?}",
                        start.elapsed()
                    );
                    helper.stop();
                    assert_eq!(dnsmasqs(), [0; 0], "{victims:?}");
                }
            }
            // Right after the last one, and nothing has to be waited for.
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
                let family = Family::of(&helper, &[]);
                // As `pkill -9 -f dnsmasq` does, among the processes of this test.
                let named = family.all().into_iter().filter(|pid| {
                    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
                    line.windows(7).any(|word| word == b"dnsmasq")
                });
                let named: Vec<_> = named.collect();
                assert!(named.contains(&family.dnsmasq), "{family:?}: {named:?}");
                for pid in &named {
                    let _ = kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL);
                }
                Family::of(&helper, &named);
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
fn a_launcher_that_is_stopped_keeps_no_helper_from_its_end() {
    let test = "deaths::a_launcher_that_is_stopped_keeps_no_helper_from_its_end";
    on_own_host(test, || {
        let folder = tempfile::tempdir().unwrap();
        let said = folder.path().join("said");
        let options = format!("--state-dir {}/state", folder.path().display());
        let helper = Helper::start_writing(&said, folder.path(), &options);
        let launcher = Family::of(&helper, &[]).launcher;
        let signal = |signal| kill_process(Pid::from_raw(launcher).unwrap(), signal);
        signal(Signal::STOP).unwrap();
        let start = Instant::now();
        helper.signal(Signal::TERM);
        helper.wait_for_the_end();
        let (took, said) = (start.elapsed(), std::fs::read_to_string(said).unwrap());
        assert!(took < Duration::from_secs(30), "{took:?}");
        assert!(said.contains(&format!("process {launcher})")), "{said}");
        // The kernel may have woken it already.
        let _ = signal(Signal::CONT);
        eventually("dnsmasq ends", || dnsmasqs().is_empty());
        Helper::start(folder.path(), &options).stop();
    });
}
