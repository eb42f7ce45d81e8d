//! Completion in the interactive shell: what any shell's completion offers.

use std::ffi::OsString;

use rustyline::completion::{Completer, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};

use super::words;
use crate::command_line;
use crate::shell::quote;
use crate::verbs::completion;

/// Completes verbs, options, and the names of guests.
pub(super) struct Completion;

impl Completer for Completion {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = line.get(..position).unwrap_or(line);
        Ok(candidates(typed))
    }
}

impl Hinter for Completion {
    type Hint = String;
}

impl Highlighter for Completion {}
impl Validator for Completion {}
impl Helper for Completion {}

/// Where the last word of what is typed begins, and what can stand there.
fn candidates(typed: &str) -> (usize, Vec<Pair>) {
    let words = words::last(typed);
    let start = words.last().map_or(typed.len(), |word| word.start);
    let texts = words.into_iter().map(|word| OsString::from(word.text));
    let all: Vec<_> = std::iter::once("bulkhead".into()).chain(texts).collect();
    let last = all.len().saturating_sub(1);
    let folder = std::env::current_dir().ok();
    let mut command = completion::with_names(command_line::command());
    let found = clap_complete::engine::complete(&mut command, all, last, folder.as_deref());
    let found = found.unwrap_or_default().into_iter();
    let visible = found.filter(|candidate| !candidate.is_hide_set());
    let pairs = visible.map(|candidate| {
        let value = candidate.get_value();
        let mut replacement = quote(value).to_string_lossy().into_owned();
        if !replacement.ends_with(['/', '=']) {
            replacement.push(' ');
        }
        Pair {
            display: value.to_string_lossy().into_owned(),
            replacement,
        }
    });
    (start, pairs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(typed: &str) -> (usize, Vec<String>) {
        let (start, pairs) = candidates(typed);
        (
            start,
            pairs.into_iter().map(|pair| pair.replacement).collect(),
        )
    }

    #[test]
    fn verbs_options_and_values_are_offered() {
        assert_eq!(offered("nodei"), (0, vec!["nodeinfo ".into()]));
        assert_eq!(offered("pwd; hostn"), (5, vec!["hostname ".into()]));
        let (start, options) = offered("nodeinfo --outp");
        assert_eq!((start, options), (9, vec!["--output ".into()]));
        let (_, formats) = offered("nodeinfo --output ");
        assert_eq!(formats, ["text ", "json "]);
    }
}
