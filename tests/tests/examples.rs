//! The examples of the manual's pages of `bulkhead`, all of them, in their order: they are one story.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

use std::path::Path;
use std::process::{Command, Output};

use bulkhead_tests::guest::{in_own_host, kernel, kvm_is_usable};
use bulkhead_tests::workplace::Workplace;

/// The source of the examples, which says their order.
const SOURCE: &str = include_str!("../../vmm/cli/src/verbs/examples.rs");

/// Runs a line as bash, in the folder of the story.
fn shell(line: &str, folder: &Path) -> Output {
    let programs = Workplace::find().unwrap().programs;
    let path = std::env::var("PATH").unwrap();
    Command::new("bash")
        .args(["-c", line])
        .current_dir(folder)
        .env("PATH", format!("{}:{path}", programs.display()))
        .output()
        .unwrap()
}

/// The pages that `bulkhead manual` writes, as `man` shows them.
fn pages(folder: &Path) -> Vec<String> {
    let made = shell("mkdir pages && bulkhead manual pages", folder);
    assert!(made.status.success(), "{made:?}");
    let entries = std::fs::read_dir(folder.join("pages")).unwrap();
    let pages = entries.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
    pages.collect()
}

/// The commands of the section EXAMPLES of all pages, in the order of the story.
fn examples(pages: &[String]) -> Vec<String> {
    let mut commands = Vec::new();
    for page in pages {
        let section = page
            .split_once(".SH EXAMPLES\n")
            .map_or("", |(_, section)| section);
        for block in section.split(".nf\n").skip(1) {
            let (lines, _) = block.split_once("\n.fi").unwrap();
            let lines = lines.replace("\\-", "-").replace("\\e", "\\");
            commands.extend(lines.lines().map(str::to_owned));
        }
    }
    let place = |command: &String| {
        let quoted = format!("{command:?}").replace("\\'", "'");
        SOURCE
            .find(&quoted)
            .unwrap_or_else(|| panic!("{quoted} is in no example"))
    };
    commands.sort_by_key(place);
    commands
}

/// Gives this mount namespace an /etc of its own, with the guest's definition in the folder of the story.
fn prepare(folder: &Path) {
    std::fs::copy(kernel(), folder.join("vmlinuz")).unwrap();
    let definition = format!(
        "name = \"web\"\nmemory = \"64M\"\nkernel = \"{}\"\ncmdline = \"test=echo\"\n",
        folder.join("vmlinuz").display()
    );
    std::fs::write(folder.join("web.toml"), definition).unwrap();
    let own = shell(
        "cp -a /etc etc && rm -rf etc/bulkhead && mount --bind etc /etc",
        folder,
    );
    assert!(own.status.success(), "{own:?}");
}

#[test]
fn every_example_of_the_manual_runs() {
    const TEST: &str = "every_example_of_the_manual_runs";
    if !kvm_is_usable(TEST) {
        return;
    }
    in_own_host(TEST, || {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let commands = examples(&pages(folder.path()));
        assert!(commands.len() > 20, "{commands:?}");
        for command in commands {
            let output = shell(&command, folder.path());
            let fine = match command.starts_with("bulkhead doctor") {
                // This host may lack what Linux guests need.
                true => {
                    [Some(0), Some(1)].contains(&output.status.code()) && output.stderr.is_empty()
                }
                false => output.status.success(),
            };
            assert!(fine, "{command}: {output:?}");
        }
        let left = shell("bulkhead list --all --name", folder.path());
        assert_eq!(String::from_utf8_lossy(&left.stdout).trim(), "");
        shell("umount /etc", folder.path());
    });
}

#[test]
fn bash_completes_commands_options_and_guests() {
    const TEST: &str = "bash_completes_commands_options_and_guests";
    in_own_host(TEST, || {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let completed = |words: &str| {
            let script = format!(
                "set -e; source <(bulkhead completion bash)
                bulkhead domuuid web >/dev/null || bulkhead define web.toml >/dev/null
                COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_TYPE=9
                function=$(complete -p bulkhead | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
                $function bulkhead \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"
                printf '%s\\n' \"${{COMPREPLY[@]}}\""
            );
            let output = shell(&script, folder.path());
            assert!(output.status.success(), "{words}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(completed("bulkhead nodei").trim(), "nodeinfo");
        assert_eq!(completed("bulkhead list --al").trim(), "--all");
        assert_eq!(completed("bulkhead start w").trim(), "web");
        assert_eq!(completed("bulkhead completion z").trim(), "zsh");
        shell("umount /etc", folder.path());
    });
}
