//! `bulkhead doctor`: whether this host runs guests, and what to do where it does not.
//!
//! It only looks: nothing on the host is changed. What needs a device open, such as running a guest of a few
//! instructions, is done by the program that may open it.

mod clock;
mod confinement;
mod cpu;
mod filters;
mod finding;
mod forwarding;
mod host;
mod kvm;
mod limits;
mod memory;
mod nft;
mod programs;
mod report;
mod user;

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_process::confine;
use crossbeam_channel::bounded;

use crate::output::Output;
use finding::Finding;
use host::Host;
use report::Line;

/// Check whether this host runs guests, and say what to do where it does not
///
/// CPU, KVM, memory, network, the user's rights and limits, confinement and clock are looked at; nothing is changed.
/// Each line is ok, warn (guests run; something is slower, less confined or not available) or FAIL (guests, or a part
/// of them, do not run), and says what to do about it. Exit status: 0 without a FAIL, 1 with one.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {}

type Check = fn(&Host) -> Vec<Finding>;

/// The checks, by group. Each group is a thread of its own.
const GROUPS: &[(&str, Check)] = &[
    ("CPU", cpu::check),
    ("KVM", kvm::check),
    ("programs", programs::check),
    ("memory", memory::check),
    ("network", forwarding::check),
    ("network", filters::check),
    ("user", user::check),
    ("limits", limits::check),
    ("confinement", confinement::check),
    ("clock", clock::check),
];

/// How long all checks may take together. Each of them answers within milliseconds unless the host is in trouble.
const TIME_LIMIT: Duration = Duration::from_secs(15);

pub(crate) fn run(_: Args, output: Output) -> anyhow::Result<ExitCode> {
    // It forks, so it comes before the threads.
    let refused = confine::refused().map_err(|error| error.to_string());
    let host = Arc::new(Host::look(refused));
    let deadline = Instant::now() + TIME_LIMIT;
    let results: Vec<_> = GROUPS
        .iter()
        .map(|&(group, check)| {
            let (sender, receiver) = bounded(1);
            let host = host.clone();
            // A check that does not end is left behind; the process ends without it.
            let started = thread::Builder::new()
                .name(group.into())
                .spawn(move || sender.send(check(&host)));
            (group, started, receiver)
        })
        .collect();
    let mut lines = Vec::new();
    for (group, started, receiver) in results {
        let findings = match started {
            Ok(_) => receiver.recv_deadline(deadline).unwrap_or_else(|_| {
                let why = format!("no answer within {} seconds", TIME_LIMIT.as_secs());
                vec![Finding::fail("answer", why)]
            }),
            Err(error) => vec![Finding::fail("thread", error.to_string())],
        };
        lines.extend(findings.into_iter().map(|finding| Line { group, finding }));
    }
    output.show(&lines, |lines| report::text(lines, host.user.is_root()))?;
    let failed = lines.iter().any(|line| line.finding.is_failure());
    Ok(ExitCode::from(u8::from(failed)))
}
