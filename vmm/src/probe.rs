//! `--probe`: whether KVM here runs guests, for `bulkhead doctor`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use bulkhead_kvm::Verdict;

use crate::confine;

/// Prints what is found as one line.
pub(crate) fn print() -> anyhow::Result<ExitCode> {
    // The probe is confined as a monitor is: what keeps a monitor from /dev/kvm keeps the probe from it.
    let _stage = confine::begin(None)?;
    let line = match bulkhead_kvm::probe()? {
        Verdict::RunsLinux => "linux\n".to_owned(),
        Verdict::RunsNoLinux(why) => format!("no-linux: {why}\n"),
        Verdict::RunsNothing(why) => format!("nothing: {why}\n"),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes())
        .and_then(|()| out.flush())
        .context("standard output")?;
    Ok(ExitCode::SUCCESS)
}
