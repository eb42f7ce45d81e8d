//! Who depends on whom, as ARCHITECTURE.md says it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

type Graph = BTreeMap<String, BTreeSet<String>>;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// What each package of the workspace uses of the others, but for its tests.
fn actual() -> Graph {
    let mut metadata = Command::new(env!("CARGO"));
    metadata.args([
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
        "--offline",
    ]);
    let output = metadata.current_dir(root()).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let ours =
                |dependency: &&Value| dependency["path"].is_string() && dependency["kind"] != "dev";
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            let names = dependencies
                .filter(ours)
                .map(|dependency| name_of(dependency));
            (name_of(package), names.collect())
        })
        .collect()
}

fn name_of(value: &Value) -> String {
    value["name"].as_str().unwrap().to_owned()
}

/// The table: folder → package and what it may use, in the table's short names. `None`: anything.
fn allowed() -> BTreeMap<String, (String, Option<BTreeSet<String>>)> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    cells
        .filter(|cells| cells.len() == 6)
        .map(|cells| {
            let plain = |cell: &str| cell.trim_matches('`').trim_end_matches('/').to_owned();
            let uses = match cells[4] {
                "anything" => None,
                "–" => Some(BTreeSet::new()),
                list => Some(list.split(',').map(|name| name.trim().to_owned()).collect()),
            };
            (plain(cells[1]), (plain(cells[2]), uses))
        })
        .collect()
}

/// `process` is how the table calls `bulkhead-process`.
fn short(package: &str) -> &str {
    package.strip_prefix("bulkhead-").unwrap_or(package)
}

#[test]
fn every_package_has_its_row() {
    let rows: BTreeSet<String> = allowed()
        .into_values()
        .map(|(package, _)| package)
        .collect();
    for package in actual().keys() {
        assert!(
            rows.contains(package),
            "{package} is not in ARCHITECTURE.md's table"
        );
    }
}

#[test]
fn no_package_uses_more_of_ours_than_its_row_says() {
    let actual = actual();
    for (folder, (package, uses)) in allowed() {
        let (Some(uses), Some(dependencies)) = (uses, actual.get(&package)) else {
            continue;
        };
        for dependency in dependencies {
            assert!(
                uses.contains(short(dependency)),
                "{folder} ({package}) uses {dependency}, which ARCHITECTURE.md's table does not allow"
            );
        }
    }
}

#[test]
fn the_monitor_reaches_no_backend_and_no_image_code() {
    let actual = actual();
    let mut reached = BTreeSet::new();
    let mut next = vec!["bulkhead-vmm".to_owned()];
    while let Some(package) = next.pop() {
        if reached.insert(package.clone()) {
            next.extend(actual[&package].iter().cloned());
        }
    }
    for foreign in [
        "qcow",
        "tap",
        "bulkhead-block",
        "bulkhead-net",
        "bulkhead-daemon",
        "bulkhead-net-helper",
    ] {
        assert!(
            !reached.contains(foreign),
            "bulkhead-vmm reaches {foreign}: {reached:?}"
        );
    }
}
