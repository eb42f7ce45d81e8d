//! Every option that qemu-img's own help names, and every way to write a size, against qemu-img.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::collections::BTreeSet;

use pair::{Pair, reference_is_there};

const VERBS: [&str; 15] = [
    "amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd", "info",
    "map", "measure", "rebase", "resize", "snapshot",
];

/// The options of a help text: words with a dash in front that begin a line or follow what separates options.
fn options_in(help: &str) -> BTreeSet<String> {
    help.split([' ', '\n', ',', '[', ']', '(', ')', '|', '\''])
        .map(|word| word.trim_end_matches(['.', ':', ';']))
        .map(|word| word.split('=').next().unwrap_or_default())
        .filter(|word| {
            let name = word.trim_start_matches('-');
            let dashes = word.len() - name.len();
            (dashes == 2 || dashes == 1 && name.len() == 1)
                && name.starts_with(|c: char| c.is_ascii_alphabetic())
        })
        .map(str::to_owned)
        .collect()
}

fn is_unknown(stderr: &str) -> bool {
    stderr.contains("unrecognized option") || stderr.contains("invalid option")
}

#[test]
fn every_option_of_the_references_help_is_known() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    let mut found = 0;
    for verb in VERBS {
        let help = pair.run_theirs(&[verb, "--help"]);
        assert_eq!(help.status, Some(0), "{verb}");
        for option in options_in(&help.stdout) {
            let (ours, theirs) = pair.run_both(&[verb, &option]);
            // The help of some versions names options that they do not take.
            if is_unknown(&theirs.stderr) {
                continue;
            }
            found += 1;
            assert!(!is_unknown(&ours.stderr), "{verb} {option}: {ours:?}");
            if option != "-h" && option != "--help" {
                // Not `snapshot --apply`, whose argument 10.0 does not take in the long form.
                let odd =
                    verb == "snapshot" && ["--apply", "--create", "--delete"].contains(&&*option);
                assert!(
                    odd || ours == theirs,
                    "{verb} {option}: {ours:?} {theirs:?}"
                );
            }
        }
    }
    assert!(found > 180, "only {found} options found in the help texts");
}

#[test]
fn every_letter_is_an_option_or_none_alike() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    for verb in VERBS {
        for letter in ('a'..='z').chain('A'..='Z').chain('0'..='9').chain(['?']) {
            let option = format!("-{letter}");
            let (ours, theirs) = pair.run_both(&[verb, &option]);
            if letter == 'h' {
                assert_eq!((ours.status, theirs.status), (Some(0), Some(0)));
                continue;
            }
            assert_eq!(
                ours, theirs,
                "image-tool (left) and qemu-img (right) {verb} {option}"
            );
        }
        // The help is given as soon as it is asked for.
        assert_eq!(pair.run_ours(&[verb, "-hZ", "--nonsense"]).status, Some(0));
    }
}

#[test]
fn sizes_are_read_alike() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    pair.prepare(&[
        &["qemu-img", "create", "-q", "-f", "raw", "m.raw", "1M"],
        &["qemu-io", "-f", "raw", "-c", "write -P 1 0 1M", "m.raw"],
    ]);
    for size in [
        "1",
        "0",
        "1k",
        "1K",
        "1b",
        "1B",
        "1.5k",
        "1.5",
        "1.5b",
        ".5k",
        "5.",
        "5.k",
        "0x10",
        "0X1F",
        "0x",
        "0x10k",
        "0x1.8",
        "1e3",
        "1E",
        "1e",
        "7.9E",
        "8E",
        "15.9E",
        "16E",
        "18446744073709551615",
        "18446744073709551616",
        "18446744073709551616k",
        "18446744073709551616.5k",
        "9223372035781033984",
        "9223372035781033985",
        "9223372036854775296",
        "9223372036854775807",
        "9223372036854775808",
        "-1",
        "-0",
        "-1k",
        "+5",
        "++5",
        " 12",
        "12 ",
        "\t7",
        "",
        " ",
        "k",
        ".k",
        ".",
        "1kB",
        "1kk",
        "1KiB",
        "1S",
        "1s",
        "1T",
        "1P",
        "inf",
        "nan",
        "0777",
        "08",
        "1_000",
        "1.0000000000000000001k",
        "0.0000001k",
        "1.999999999999999999999k",
        "1.5.5k",
        "0.5",
        "0.0",
        "1.0",
        "0.5k",
        "0.4999k",
        "1e1k",
        "0x8000000000000000",
        "0xffffffffffffffff",
        "0x10000000000000000",
        "1m",
        "1g",
        "+1k",
        "+-1",
        "12x",
    ] {
        let (as_size, as_block) = (format!("size={size}"), format!("bs={size}"));
        let as_cluster = format!("cluster_size={size}");
        for arguments in [
            vec!["create", "-f", "raw", "a.raw", "--", size],
            vec!["create", "-f", "qcow2", "-o", &as_size, "a.q"],
            vec!["create", "-f", "qcow2", "-o", &as_cluster, "c.q", "1M"],
            vec!["measure", "--size", size],
            vec!["map", "-s", size, "m.raw"],
            vec!["map", "-l", size, "m.raw"],
            vec!["dd", "if=m.raw", "of=o.raw", &as_block, "count=1"],
            vec!["resize", "-f", "raw", "--shrink", "m.raw", "--", size],
        ] {
            // A raw disk of a terabyte is no burden; a file system may still refuse it.
            pair.same(&arguments);
        }
        pair.same(&["resize", "-q", "-f", "raw", "--shrink", "m.raw", "1M"]);
    }
}

#[test]
fn the_version_is_one_that_scripts_can_read() {
    let pair = Pair::new();
    let version = pair.run_ours(&["--version"]).stdout;
    assert!(version.starts_with("qemu-img version "), "{version}");
    let number: Vec<u32> = version
        .split(' ')
        .nth(2)
        .unwrap()
        .split('.')
        .map(|part| part.parse().unwrap())
        .collect();
    assert!(number.len() == 3 && number[0] >= 10, "{version}");
}
