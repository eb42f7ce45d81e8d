//! Completions and man pages, which are made from the command definitions: used, not only looked at.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_image-tool"))
        .args(args)
        .output()
        .unwrap()
}

/// What bash offers for the last word of a line.
fn offered(script: &Path, line: &str) -> Vec<String> {
    // As readline does it: the words, which of them, then the function with the program, the word and the one before.
    let ask = r#"
        . "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        completion=$(complete -p image-tool); completion=${completion##*-F }
        "${completion%% *}" image-tool "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        [ ${#COMPREPLY[@]} = 0 ] || printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let output = Command::new("bash")
        .args(["--norc", "-c", ask, "bash"])
        .arg(script)
        .args(line.split(' '))
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    let words = String::from_utf8(output.stdout).unwrap();
    words.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_verbs_options_and_values() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("completions");
    fs::write(&script, run(&["--completions", "bash"]).stdout).unwrap();
    for (line, expected) in [
        ("image-tool co", &["commit", "compare", "convert"][..]),
        ("image-tool convert --sal", &["--salvage"]),
        ("image-tool convert a b --skip", &["--skip-broken-bitmaps"]),
        ("image-tool resize --shr", &["--shrink"]),
        ("image-tool info --output j", &["json"]),
        ("image-tool convert -O q", &["qcow2"]),
        ("image-tool check -r a", &["all"]),
        ("image-tool resize --preallocation m", &["metadata"]),
        ("image-tool convert -t dir", &["directsync"]),
        ("image-tool hel", &[]),
    ] {
        assert_eq!(offered(&script, line), expected, "{line}");
    }
}

#[test]
fn there_are_completions_for_other_shells() {
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = String::from_utf8(run(&["--completions", shell]).stdout).unwrap();
        assert!(
            script.contains("backing-format") && script.contains("snapshot"),
            "{shell}"
        );
    }
    assert!(!run(&["--completions", "nosuch"]).status.success());
}

#[test]
fn the_man_pages_are_written_into_a_folder_that_need_not_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("share/man1");
    let written = run(&["--man-pages", &pages.to_string_lossy()]);
    assert!(written.status.success(), "{written:?}");
    let page = fs::read_to_string(pages.join("image-tool.1")).unwrap();
    assert!(page.contains("Knowing differences"), "{page}");
    for (verb, printed) in [
        ("check", "63  images of this format cannot be checked"),
        ("compare", "4  an image cannot be read"),
        ("resize", "1  it failed"),
        ("create", "cluster_size=<size>"),
        ("convert", "data_file_raw=<bool"),
        ("amend", "refcount_bits=<num>"),
    ] {
        let page = fs::read_to_string(pages.join(format!("image-tool-{verb}.1"))).unwrap();
        assert!(page.contains(printed), "{verb}: {page}");
    }
    let amend = fs::read_to_string(pages.join("image-tool-amend.1")).unwrap();
    assert!(!amend.contains("cluster_size="), "{amend}");
    assert!(pages.join("image-tool-convert.1").exists());
}
