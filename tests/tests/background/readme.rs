//! The commands of the README's section about guests by name, run as they are printed there.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use bulkhead_tests::guest::kernel;
use bulkhead_tests::workplace::Workplace;

use super::on_host;

/// The lines of a block of this language in the section.
fn block<'a>(readme: &'a str, language: &str) -> Vec<&'a str> {
    let section = readme.split("\n## Guests by name\n").nth(1).unwrap();
    let block = section.split(&format!("\n```{language}\n")).nth(1).unwrap();
    block.split("\n```").next().unwrap().lines().collect()
}

/// The definition that is shown, of the guest that runs here.
fn definition(lines: &[&str]) -> String {
    let kernel = kernel().display();
    let here = |line: &&str| match *line {
        line if line.starts_with("kernel =") => {
            format!("kernel = \"{kernel}\"\ncmdline = \"test=echo\"\n")
        }
        line if line.starts_with("initramfs =") => String::new(),
        line => format!("{line}\n"),
    };
    lines.iter().map(here).collect()
}

fn shell(line: &str) -> Output {
    let programs = Workplace::find().unwrap().programs;
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    Command::new("sh")
        .args(["-c", line])
        .env("PATH", path)
        .current_dir("/run")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn the_daily_life_of_a_guest_is_as_the_readme_shows_it() {
    on_host(
        "readme::the_daily_life_of_a_guest_is_as_the_readme_shows_it",
        |_| {
            let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
            let readme = std::fs::read_to_string(readme).unwrap();
            let lib = Command::new("mount")
                .args(["-t", "tmpfs", "none", "/var/lib"])
                .status();
            assert!(lib.unwrap().success());
            std::fs::create_dir("/var/lib/bulkhead").unwrap();
            std::fs::write("/run/web.toml", definition(&block(&readme, "toml"))).unwrap();
            assert!(
                shell("image-tool create -q -f qcow2 /var/lib/bulkhead/disk.qcow2 64M")
                    .status
                    .success()
            );
            let commands = block(&readme, "sh");
            assert!(commands.len() > 8);
            for line in commands {
                let typed = match line.contains("console") {
                    true => format!("printf '\\035' | {}", line.split('#').next().unwrap()),
                    false => line.to_owned(),
                };
                let output = shell(&typed);
                assert!(output.status.success(), "{line}: {output:?}");
                assert!(output.stderr.is_empty(), "{line}: {output:?}");
            }
        },
    );
}
