//! Command lines: what options a verb has by its own help, how they are spelled, and which were used.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Mutex;

use crate::numbers::Random;

/// The verbs.
pub(crate) const VERBS: [&str; 15] = [
    "amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd", "info",
    "map", "measure", "rebase", "resize", "snapshot",
];

/// One option: its letter and whether it has a long name.
#[derive(Clone, Copy, Default)]
struct Spelling {
    letter: Option<char>,
    long: bool,
}

/// Every option of every verb, and how often it was used.
pub(crate) struct Options {
    known: BTreeMap<&'static str, BTreeMap<String, Spelling>>,
    used: Mutex<BTreeMap<(String, String), u64>>,
}

fn help(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_image-tool"))
        .args(args)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// `-q, --quiet`, `--output <…>` or `-n`, as help begins a line with it.
fn option_of(line: &str) -> Option<(String, Spelling)> {
    let mut words = line
        .trim_start()
        .split([' ', ','])
        .filter(|word| !word.is_empty());
    let first = words.next().filter(|word| word.starts_with('-'))?;
    let name = |word: &str| word.trim_start_matches('-').to_owned();
    if first.starts_with("--") {
        return Some((
            name(first),
            Spelling {
                letter: None,
                long: true,
            },
        ));
    }
    let letter = first.chars().nth(1);
    let long = words.next().filter(|word| word.starts_with("--"));
    Some((
        name(long.unwrap_or(first)),
        Spelling {
            letter,
            long: long.is_some(),
        },
    ))
}

impl Options {
    /// Asks the tool itself.
    pub(crate) fn of_the_tool() -> Self {
        let mut known = BTreeMap::new();
        for verb in VERBS {
            let mut options: BTreeMap<String, Spelling> = help(&[verb, "--help"])
                .lines()
                .filter(|line| !line.starts_with("          "))
                .filter_map(option_of)
                .filter(|(name, _)| name != "help")
                .collect();
            for (what, list) in [
                ("qcow2", &["create", "-f", "qcow2", "-o", "help", "x"][..]),
                ("raw", &["create", "-f", "raw", "-o", "help", "x"]),
                ("amend", &["amend", "-f", "qcow2", "-o", "help"]),
            ] {
                let takes_them = match verb {
                    "create" | "convert" => what != "amend",
                    "measure" => what == "qcow2",
                    "amend" => what == "amend",
                    _ => false,
                };
                if takes_them {
                    let known = format_options(&help(list), what);
                    options.extend(known.into_iter().filter(|(name, _)| concerns(verb, name)));
                }
            }
            assert!(options.len() > 3, "{verb}: {:?}", options.keys());
            known.insert(verb, options);
        }
        let operands = ["bs=", "count=", "skip=", "if=", "of="];
        let operands = operands.map(|name| (name.to_owned(), Spelling::default()));
        known.entry("dd").or_default().extend(operands);
        Self {
            known,
            used: Mutex::default(),
        }
    }

    /// Begins a command line.
    pub(crate) fn line(&self, verb: &'static str) -> Line<'_> {
        Line {
            options: self,
            verb,
            words: vec![verb.to_owned()],
            operands: Vec::new(),
        }
    }

    fn note(&self, verb: &str, option: &str) {
        let known = self
            .known
            .get(verb)
            .is_some_and(|options| options.contains_key(option));
        assert!(known, "{verb} has no option {option}");
        let mut used = self.used.lock().unwrap();
        *used
            .entry((verb.to_owned(), option.to_owned()))
            .or_default() += 1;
    }

    /// The options that were never used, and how many were.
    pub(crate) fn unused(&self) -> (BTreeSet<String>, usize) {
        let used = self.used.lock().unwrap();
        let all = self.known.iter().flat_map(|(verb, options)| {
            options
                .keys()
                .map(|option| ((*verb).to_owned(), option.clone()))
        });
        let unused = all
            .filter(|key| !used.contains_key(key))
            .map(|(verb, option)| format!("{verb} {option}"));
        (unused.collect(), used.len())
    }

    /// Every option with the number of its uses.
    pub(crate) fn table(&self) -> String {
        let used = self.used.lock().unwrap();
        let mut table = String::new();
        for ((verb, option), count) in used.iter() {
            table += &format!("{verb:<9}{option:<24}{count:>7}\n");
        }
        table
    }
}

/// The `-o` options of a list that explains them, but those for encryption, which is refused.
fn format_options(text: &str, what: &str) -> Vec<(String, Spelling)> {
    let names = text
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split_once("=<"));
    names
        .filter(|(name, _)| !name.starts_with("encrypt"))
        .map(|(name, _)| (format!("-o {what} {name}"), Spelling::default()))
        .collect()
}

/// Whether a verb makes something of an option. `convert` has options of its own for the backing file, and copies the
/// size; `measure` looks at the layout only.
fn concerns(verb: &str, option: &str) -> bool {
    let name = option.rsplit(' ').next().unwrap_or_default();
    let files = [
        "backing_file",
        "backing_fmt",
        "data_file",
        "data_file_raw",
        "size",
    ];
    let host = ["nocow", "extent_size_hint"];
    match verb {
        "convert" => !files.contains(&name),
        "measure" => !files.contains(&name) && !host.contains(&name),
        _ => true,
    }
}

/// A command line in the making.
pub(crate) struct Line<'a> {
    options: &'a Options,
    verb: &'static str,
    words: Vec<String>,
    operands: Vec<String>,
}

impl Line<'_> {
    pub(crate) fn verb(&self) -> &str {
        self.verb
    }

    /// An option without a value, by its letter or its name.
    pub(crate) fn flag(&mut self, random: &mut Random, name: &str) -> &mut Self {
        self.options.note(self.verb, name);
        let spelling = self.options.known[self.verb][name];
        let word = match spelling.letter {
            Some(letter) if !spelling.long || random.one_in(2) => format!("-{letter}"),
            _ => format!("--{name}"),
        };
        self.words.push(word);
        self
    }

    /// An option that is given sometimes.
    pub(crate) fn perhaps(&mut self, random: &mut Random, one_in: u64, name: &str) -> &mut Self {
        if random.one_in(one_in) {
            self.flag(random, name);
        }
        self
    }

    /// An option with a value, by its letter: qemu-img's `snapshot` forgets the values of long ones.
    pub(crate) fn letter_value(&mut self, name: &str, value: &str) -> &mut Self {
        self.options.note(self.verb, name);
        let letter = self.options.known[self.verb][name].letter.unwrap();
        self.words.extend([format!("-{letter}"), value.to_owned()]);
        self
    }

    /// An option with a value, in any of the ways to write one.
    pub(crate) fn value(&mut self, random: &mut Random, name: &str, value: &str) -> &mut Self {
        self.options.note(self.verb, name);
        let spelling = self.options.known[self.verb][name];
        // qemu-img's `bitmap` has no long names for formats.
        let way = if self.verb == "bitmap" {
            1
        } else {
            random.below(4)
        };
        match (spelling.letter, way) {
            (Some(letter), 0) if !value.is_empty() => self.words.push(format!("-{letter}{value}")),
            (Some(letter), _) if !spelling.long => {
                self.words.extend([format!("-{letter}"), value.to_owned()])
            }
            (Some(letter), 1) => self.words.extend([format!("-{letter}"), value.to_owned()]),
            (_, 2) => self.words.push(format!("--{name}={value}")),
            _ => self.words.extend([format!("--{name}"), value.to_owned()]),
        }
        self
    }

    /// `-o`, with these keys of a format (or `amend`).
    pub(crate) fn format_options(
        &mut self,
        random: &mut Random,
        what: &str,
        list: &[(String, String)],
    ) -> &mut Self {
        for (key, _) in list {
            self.options.note(self.verb, &format!("-o {what} {key}"));
        }
        let text = |part: &[(String, String)]| {
            let pairs: Vec<String> = part
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            pairs.join(",")
        };
        if list.is_empty() {
            return self;
        }
        let middle = random.below(list.len() as u64 * 2) as usize;
        match middle {
            // Two lists are one.
            1.. if middle < list.len() => {
                self.value(random, "options", &text(&list[..middle]));
                self.value(random, "options", &text(&list[middle..]))
            }
            _ => self.value(random, "options", &text(list)),
        }
    }

    /// What is not an option.
    pub(crate) fn operand(&mut self, operand: impl Into<String>) -> &mut Self {
        let operand = operand.into();
        if self.verb == "dd"
            && let Some((key, _)) = operand.split_once('=')
        {
            self.options.note("dd", &format!("{key}="));
        }
        self.operands.push(operand);
        self
    }

    /// The whole line. Options may follow operands, but for `resize`, whose size may look like one.
    pub(crate) fn words(&self, random: &mut Random) -> Vec<String> {
        let mut words = self.words.clone();
        if self.verb != "resize" && random.one_in(5) {
            words.splice(1..1, self.operands.iter().cloned());
        } else {
            words.extend(self.operands.iter().cloned());
        }
        words
    }
}
