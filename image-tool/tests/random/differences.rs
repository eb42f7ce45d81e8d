//! The differences there are on purpose, from the table in image-tool's README, and what cannot be the same in two
//! runs.

use crate::pair::Outcome;

/// What is left of an outcome without times and steps of progress.
pub(crate) fn normal(words: &[String], mut outcome: Outcome) -> Outcome {
    if words[0] == "check"
        && words
            .iter()
            .any(|word| word.contains("leaks") || word.contains("all"))
    {
        // Where the new tables are, and in how many passes they were made.
        let lines = outcome
            .stdout
            .lines()
            .filter(|line| !line.starts_with("Image end offset"));
        outcome.stdout = lines.collect::<Vec<_>>().join("\n");
        outcome.stderr.clear();
    }
    if words[0] == "bench" {
        let lines = outcome
            .stdout
            .lines()
            .filter(|line| !line.starts_with("Run completed in"));
        outcome.stdout = lines.collect::<Vec<_>>().join("\n");
    }
    // Steps of progress, `    (12.34/100%)` with a carriage return, and the end of their line.
    while let Some(at) = outcome.stdout.find("/100%)\r") {
        let begin = outcome.stdout[..at].rfind("    (").unwrap_or(at);
        outcome
            .stdout
            .replace_range(begin..at + "/100%)\r".len(), "");
    }
    outcome.stdout = outcome.stdout.trim_end().to_owned();
    outcome
}

/// Whether the tools may differ here.
pub(crate) fn known(words: &[String], ours: &Outcome, theirs: &Outcome) -> bool {
    let has = |option: &str| words.iter().any(|word| word == option);
    let done = ours.status == Some(0);
    let said = |text: &str| theirs.stderr.contains(text);
    let verb = &words[0][..];
    // What both refuse, they refuse in words that `command_line.rs` and `verbs/` compare; there may be several reasons.
    let refused = |outcome: &Outcome| outcome.status == Some(1) && !outcome.stderr.is_empty();
    if refused(ours) && refused(theirs) {
        return true;
    }
    // The reference was ended by a signal: it found an assertion of its own to fail (`rebase -c` with subclusters,
    // `commit -t none` of a disk whose size is not a multiple of 4 KiB).
    if done && theirs.status.is_none() {
        return true;
    }
    // Two disks that differ in content and in how it is stored: which is met first depends on how far the tool looks at
    // once.
    let differ = |outcome: &Outcome| outcome.status == Some(1) && !outcome.stdout.is_empty();
    let strict = has("-s") || has("--strict");
    if verb == "compare" && strict && differ(ours) && differ(theirs) {
        return true;
    }
    // Version 2 images: growth, commits and zeroes that cannot be expressed are written out.
    (done && said("Operation not supported"))
        // Compressed clusters are written over allocated ones.
        || (done && verb == "convert" && has("-n") && said("Input/output error"))
        // `amend -o compat=0.10` is refused with any internal snapshot or bitmap.
        || (verb == "amend" && ours.stderr.contains("downgrade") && !done && theirs.status == Some(0))
}
