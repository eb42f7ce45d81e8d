//! `bulkhead-block` beside QEMU's storage daemon, under a driver of our own: its package's bench does it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Measurement;
use crate::workplace::Workplace;

const ROUNDS: &str = "5";

/// Requests a second, and the processor time of each: as it is by default beside QEMU, then all by one way; with one
/// queue and with two.
pub(super) fn requests(_: &Workplace) -> Result<Vec<Measurement>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args(["bench", "--quiet", "-p", "bulkhead-block"])
        .args(["--bench", "against_qemu", "--"])
        .args(["--json", "--rounds", ROUNDS])
        .output()
        .context("cargo bench")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo bench: {said}");
    let mut measurements = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let load: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        measurements.extend(of_load(&load).with_context(|| line.to_owned())?);
    }
    Ok(measurements)
}

/// One line of the bench: for each way to serve, requests a second and microseconds of each.
fn of_load(load: &Value) -> Option<Vec<Measurement>> {
    let name = load.get("load")?.as_str()?;
    let of = |server: &str, index: usize| load.get(server)?.get(index)?.as_f64();
    let mut measurements = Vec::new();
    for (index, what, unit) in [(0, "requests", "1/s"), (1, "processor time", "µs each")] {
        for (server, called) in [
            ("auto", "block"),
            ("io_uring", "block, all by io_uring"),
            ("threads", "block, all by threads"),
        ] {
            let title = format!("{called}, {name}: {what}");
            let ours = Measurement::new(title, of(server, index)?, unit);
            measurements.push(match of("qemu", index) {
                Some(theirs) if server == "auto" => ours.against("qemu-storage-daemon", theirs),
                _ => ours,
            });
        }
    }
    Some(measurements)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_bench_is_six_measurements() {
        let line = r#"{"load":"raw, read 4k","auto":[210000,2.4],"io_uring":[200000,2.5],"threads":[100000,5],"qemu":[50000,14]}"#;
        let found = of_load(&serde_json::from_str(line).unwrap()).unwrap();
        assert_eq!(found.len(), 6);
        assert_eq!((found[0].value, found[1].value), (210_000.0, 200_000.0));
        assert_eq!(found[1].peer, None);
        assert_eq!(
            found[3].peer,
            Some(("qemu-storage-daemon".to_owned(), 14.0))
        );
        assert!(of_load(&serde_json::json!({"load": "raw"})).is_none());
    }
}
