//! Divides a line into commands and words, as virsh does: `;` and line feeds end a command, `#` begins a comment, and
//! quotes and backslashes are a shell's.

use std::fmt;

/// A word, and where in the line it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) start: usize,
}

/// A line that ends within quotes or after a backslash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unfinished(&'static str);

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "missing {}", self.0)
    }
}

/// The commands of a line; those without words are left out.
pub(super) fn commands(line: &str) -> Result<Vec<Vec<String>>, Unfinished> {
    let mut reader = Reader::new(line);
    reader.read();
    if let Some(missing) = reader.missing {
        return Err(Unfinished(missing));
    }
    let texts = |words: Vec<Word>| words.into_iter().map(|word| word.text).collect();
    let all = reader.commands.into_iter();
    Ok(all.filter(|words| !words.is_empty()).map(texts).collect())
}

/// The words of the last command of a line that is being typed, the last of which, perhaps empty, is not finished.
pub(super) fn last(line: &str) -> Vec<Word> {
    let mut reader = Reader::new(line);
    reader.read();
    let mut words = reader.commands.pop().unwrap_or_default();
    if !reader.in_word {
        words.push(Word {
            text: String::new(),
            start: line.len(),
        });
    }
    words
}

struct Reader<'a> {
    rest: std::iter::Peekable<std::str::CharIndices<'a>>,
    commands: Vec<Vec<Word>>,
    /// Whether the line ends within a word.
    in_word: bool,
    missing: Option<&'static str>,
}

impl<'a> Reader<'a> {
    fn new(line: &'a str) -> Self {
        Self {
            rest: line.char_indices().peekable(),
            commands: vec![Vec::new()],
            in_word: false,
            missing: None,
        }
    }

    fn read(&mut self) {
        while let Some((at, next)) = self.rest.next() {
            match next {
                ';' | '\n' => {
                    self.in_word = false;
                    self.commands.push(Vec::new());
                }
                '#' if !self.in_word => {
                    while self.rest.next_if(|(_, next)| *next != '\n').is_some() {}
                }
                next if next.is_whitespace() => self.in_word = false,
                '\'' => self.quoted(at),
                '"' => self.double_quoted(at),
                '\\' => self.escaped(at),
                next => self.word(at).push(next),
            }
        }
    }

    /// The word that the character at `at` belongs to.
    fn word(&mut self, at: usize) -> &mut String {
        if self.commands.is_empty() {
            self.commands.push(Vec::new());
        }
        let last = self.commands.len().saturating_sub(1);
        let words = &mut self.commands[last];
        if !self.in_word || words.is_empty() {
            self.in_word = true;
            words.push(Word {
                text: String::new(),
                start: at,
            });
        }
        let last = words.len().saturating_sub(1);
        &mut words[last].text
    }

    fn quoted(&mut self, at: usize) {
        self.word(at);
        while let Some((_, next)) = self.rest.next() {
            match next {
                '\'' => return,
                next => self.word(at).push(next),
            }
        }
        self.missing = Some("'");
    }

    fn double_quoted(&mut self, at: usize) {
        self.word(at);
        while let Some((_, next)) = self.rest.next() {
            match next {
                '"' => return,
                '\\' => self.escaped(at),
                next => self.word(at).push(next),
            }
        }
        self.missing = self.missing.or(Some("\""));
    }

    fn escaped(&mut self, at: usize) {
        match self.rest.next() {
            // The command goes on in the next line.
            Some((_, '\n')) => {}
            Some((_, next)) => self.word(at).push(next),
            None => self.missing = Some("a character after \\"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Vec<Vec<String>> {
        commands(line).unwrap()
    }

    #[test]
    fn words_are_those_that_virsh_reads() {
        // Each as `virsh 'echo …'` prints it.
        assert_eq!(read(r#"echo a "b c" d\;e"#), [["echo", "a", "b c", "d;e"]]);
        assert_eq!(
            read(r#"echo a\ b 'x y' "q\"r""#),
            [["echo", "a b", "x y", "q\"r"]]
        );
        assert_eq!(read("echo it\"'\"s ''"), [["echo", "it's", ""]]);
        assert_eq!(read("pwd # comment; no\nhostname"), [["pwd"], ["hostname"]]);
        assert_eq!(read("echo a#b"), [["echo", "a#b"]]);
        assert_eq!(read("a;;b; \n;c"), [["a"], ["b"], ["c"]]);
        assert_eq!(read("echo a\\\nb"), [["echo", "ab"]]);
        assert_eq!(read(" ; "), Vec::<Vec<String>>::new());
    }

    #[test]
    fn what_is_unfinished_is_named() {
        assert_eq!(commands("echo \"a").unwrap_err().to_string(), "missing \"");
        assert_eq!(commands("echo 'a\n").unwrap_err().to_string(), "missing '");
        assert!(commands("echo a\\").is_err());
        assert!(commands("echo \"a\\").is_err());
    }

    #[test]
    fn a_line_that_is_being_typed_has_a_last_word() {
        let typed = |line| {
            let words = last(line);
            let texts: Vec<_> = words.iter().map(|word| word.text.clone()).collect();
            (texts, words.last().unwrap().start)
        };
        assert_eq!(typed(""), (vec![String::new()], 0));
        assert_eq!(typed("list; domin"), (vec!["domin".into()], 6));
        assert_eq!(typed("start "), (vec!["start".into(), String::new()], 6));
        assert_eq!(
            typed("start 'my g"),
            (vec!["start".into(), "my g".into()], 6)
        );
        assert_eq!(
            typed("start my\\ g"),
            (vec!["start".into(), "my g".into()], 6)
        );
    }
}
