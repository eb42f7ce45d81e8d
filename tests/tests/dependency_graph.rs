//! Who may depend on whom, and who may be unsafe, as ARCHITECTURE.md says: read from that page and compared with the
//! workspace as cargo sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand, Package, Target};

/// A line of the folder table.
struct Row {
    package: String,
    uses: Uses,
}

/// Its last column.
enum Uses {
    Anything,
    Exactly(BTreeSet<String>),
}

const OWN_WORKSPACE: &str = "its own workspace";

#[test]
fn every_package_has_a_row_and_every_row_a_package() {
    let said: BTreeMap<PathBuf, String> = folder_table()
        .into_iter()
        .map(|(folder, row)| (folder, row.package))
        .collect();

    let actual: BTreeMap<PathBuf, String> = packages_by_folder()
        .into_iter()
        .map(|(folder, (package, workspace))| match workspace == root() {
            true => (folder, package.name.to_string()),
            false => (folder, OWN_WORKSPACE.to_owned()),
        })
        .collect();

    assert_eq!(said, actual);
}

/// Code spans that are a path, or `PATH: function`.
#[test]
fn places_that_the_page_names_are_there() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let spans = page.split('`').skip(1).step_by(2);
    let mut functions = 0;
    for span in spans.filter(|span| is_place(span)) {
        let Some((file, function)) = span.split_once(": ") else {
            assert!(root().join(span).exists(), "{span}");
            continue;
        };
        let code = std::fs::read_to_string(root().join(file));
        let code = code.unwrap_or_else(|error| panic!("{span}: {error}"));
        let begins = [format!("fn {function}("), format!("fn {function}<")];
        assert!(begins.iter().any(|begin| code.contains(begin)), "{span}");
        functions += 1;
    }
    assert!(functions > 10, "{functions}");
}

fn is_place(span: &str) -> bool {
    let folders = ["vmm/", "backends/", "net-helper/", "image-tool/", "tests/"];
    folders.iter().any(|folder| span.starts_with(folder))
        && !span.contains(['*', '…'])
        && !span.contains("NAME")
}

#[test]
fn a_package_uses_of_ours_exactly_what_its_row_says() {
    let table = folder_table();
    let packages = packages_by_folder();
    let ours: BTreeSet<&str> = packages
        .values()
        .map(|(package, _)| package.name.as_str())
        .collect();
    let full_name = |short: &String| {
        let long = format!("bulkhead-{short}");
        let known = [short.as_str(), &long]
            .into_iter()
            .find(|name| ours.contains(name));
        known
            .unwrap_or_else(|| panic!("the table names {short}, which is no package"))
            .to_owned()
    };

    for (folder, (package, _)) in &packages {
        let Uses::Exactly(said) = &table[folder].uses else {
            continue;
        };
        let said: BTreeSet<String> = said.iter().map(full_name).collect();
        let actual: BTreeSet<String> = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind != DependencyKind::Development)
            .filter(|dependency| dependency.path.is_some())
            .map(|dependency| dependency.name.clone())
            .collect();
        assert_eq!(
            said, actual,
            "{}, in the table and in its Cargo.toml",
            package.name
        );
    }
}

#[test]
fn a_crate_begins_with_what_it_is_and_what_it_may_touch() {
    for (package, _) in packages_by_folder().values() {
        let roots = roots(package).filter(|root| {
            let name = root.src_path.file_name();
            matches!(name, Some("lib.rs" | "main.rs"))
        });
        for root in roots {
            let docs = docs(root);
            let path = &root.src_path;
            let named = format!("`{}`: ", package.name);
            assert!(
                docs.starts_with(&named),
                "{path}: its //! begins with {named}"
            );
            let sentences = docs.split(' ').filter(|word| word.ends_with('.')).count();
            assert!(
                sentences >= 2,
                "{path}: {sentences} sentence in its //!: {docs}"
            );
            let docs = docs.to_lowercase();
            assert!(docs.contains("may touch"), "{path}: what may it touch?");
            assert!(
                ["must not", "must never", "depend"]
                    .iter()
                    .any(|words| docs.contains(words)),
                "{path}: what must it not depend on?"
            );
        }
    }
}

#[test]
fn a_crate_that_does_not_forbid_unsafe_code_is_listed_with_the_reason() {
    let listed: BTreeSet<String> = section("## Unsafe code")
        .map(|cells| {
            let [package, reason] = cells.try_into().expect("a package and a reason");
            assert!(!reason.is_empty(), "{package}: why?");
            code(&package)
        })
        .collect();

    let packages = packages_by_folder();
    let unsafe_ones: BTreeSet<String> = packages
        .values()
        .filter(|(package, _)| roots(package).any(|root| !forbids_unsafe_code(root)))
        .map(|(package, _)| package.name.to_string())
        .collect();

    assert_eq!(listed, unsafe_ones, "in ARCHITECTURE.md and in the code");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ is in the root folder")
}

/// The rows of the first table below this heading, without its head.
fn section(heading: &str) -> impl Iterator<Item = Vec<String>> {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut lines = page
        .lines()
        .map(str::to_owned)
        .collect::<Vec<_>>()
        .into_iter();
    assert!(
        lines.any(|line| line == heading),
        "no {heading} in ARCHITECTURE.md"
    );
    lines
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let row = line.trim().trim_matches('|');
            row.split('|').map(|cell| cell.trim().to_owned()).collect()
        })
}

fn folder_table() -> BTreeMap<PathBuf, Row> {
    section("## Folders")
        .map(|cells| {
            let [folder, package, _, uses]: [String; 4] = cells.try_into().expect("four columns");
            let uses = match uses.as_str() {
                "anything" => Uses::Anything,
                "–" => Uses::Exactly(BTreeSet::new()),
                list => Uses::Exactly(list.split(", ").map(str::to_owned).collect()),
            };
            let package = match package.as_str() {
                OWN_WORKSPACE => package,
                name => code(name),
            };
            let folder = PathBuf::from(code(&folder).trim_end_matches('/'));
            (folder, Row { package, uses })
        })
        .collect()
}

/// What stands between backquotes.
fn code(cell: &str) -> String {
    let inner = cell
        .strip_prefix('`')
        .and_then(|rest| rest.strip_suffix('`'));
    inner
        .unwrap_or_else(|| panic!("{cell} is not in backquotes"))
        .to_owned()
}

/// All packages, also those of the workspaces inside this one, by folder, with the root of their workspace.
fn packages_by_folder() -> BTreeMap<PathBuf, (Package, PathBuf)> {
    let inner = manifests_below(&root().join("tests"));
    let mut packages = BTreeMap::new();
    for manifest in [root().join("Cargo.toml")].into_iter().chain(inner) {
        let metadata = MetadataCommand::new()
            .manifest_path(&manifest)
            .no_deps()
            .other_options(["--offline".to_owned()])
            .exec()
            .unwrap_or_else(|error| panic!("{}: {error}", manifest.display()));
        let workspace = metadata.workspace_root.into_std_path_buf();
        for package in metadata.packages {
            let folder = package.manifest_path.parent().unwrap().as_std_path();
            let folder = folder.strip_prefix(root()).unwrap().to_owned();
            packages.insert(folder, (package, workspace.clone()));
        }
    }
    packages
}

fn manifests_below(folder: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    folders
        .map(|folder| folder.join("Cargo.toml"))
        .filter(|manifest| manifest.exists())
        .collect()
}

/// The crates of a package that others, or the system, run.
fn roots(package: &Package) -> impl Iterator<Item = &Target> {
    package
        .targets
        .iter()
        .filter(|target| target.is_lib() || target.is_bin())
}

/// The `//!` lines a file begins with, without code, in one line.
fn docs(target: &Target) -> String {
    let text = std::fs::read_to_string(&target.src_path).unwrap();
    let lines = text
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(str::trim);
    let mut in_code = false;
    let prose = lines.filter(|line| {
        let fence = line.starts_with("```");
        in_code ^= fence;
        !fence && !in_code
    });
    prose.collect::<Vec<_>>().join(" ")
}

fn forbids_unsafe_code(target: &Target) -> bool {
    let text = std::fs::read_to_string(&target.src_path).unwrap();
    text.lines().any(|line| line == "#![forbid(unsafe_code)]")
}
