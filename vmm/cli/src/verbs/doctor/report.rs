//! The report as text: one aligned line for each check, and below it what mends it.

use std::fmt::Write;
use std::io::IsTerminal;

use serde::Serialize;

use super::finding::{Finding, Status};

/// A finding and its group.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) group: &'static str,
    #[serde(flatten)]
    pub(crate) finding: Finding,
}

/// The width of the longest group and of the longest check, for the alignment.
const GROUP: usize = 11;
const CHECK: usize = 30;

/// The lines, in colour where a person reads them.
pub(crate) fn text(lines: &[Line], is_root: bool) -> String {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    let coloured = std::io::stdout().is_terminal() && !set("NO_COLOR") && !dumb;
    render(lines, is_root, coloured)
}

fn render(lines: &[Line], is_root: bool, coloured: bool) -> String {
    let mut text = String::new();
    for Line { group, finding } in lines {
        let (word, colour) = match finding.status() {
            Status::Ok => ("ok", "\x1b[32m"),
            Status::Warn => ("warn", "\x1b[33m"),
            Status::Fail => ("FAIL", "\x1b[1;31m"),
        };
        let (colour, plain) = match coloured {
            true => (colour, "\x1b[0m"),
            false => ("", ""),
        };
        let (check, detail) = (finding.check(), finding.detail());
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "{group:>GROUP$}: {check:<CHECK$} : {colour}{word}{plain}"
        );
        let _ = match detail {
            "" => writeln!(text),
            detail => writeln!(text, " ({detail})"),
        };
        if let Some((label, what)) = finding.mend(is_root) {
            let indent = GROUP + 2 + CHECK + 3;
            let _ = writeln!(text, "{:indent$}{label}: {what}", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> [Line; 2] {
        [
            Line {
                group: "CPU",
                finding: Finding::ok("hardware virtualization", ""),
            },
            Line {
                group: "confinement",
                finding: Finding::fail("seccomp", "why").run("a command"),
            },
        ]
    }

    #[test]
    fn lines_are_aligned_and_what_mends_is_below() {
        assert_eq!(
            render(&lines(), true, false),
            "        CPU: hardware virtualization        : ok\n\
             confinement: seccomp                        : FAIL (why)\n                                              \
             run: a command\n"
        );
    }

    #[test]
    fn only_the_word_is_in_colour() {
        let coloured = render(&lines(), true, true);
        assert!(coloured.contains(": \x1b[32mok\x1b[0m\n"), "{coloured:?}");
        let plain = coloured
            .replace("\x1b[32m", "")
            .replace("\x1b[1;31m", "")
            .replace("\x1b[0m", "");
        assert_eq!(plain, render(&lines(), true, false));
    }
}
