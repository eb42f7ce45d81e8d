//! The kernel command line: words, some of the form `name=value`.

/// The words of the kernel command line. Those the guest does not know are for others and are ignored.
pub(crate) struct CommandLine {
    text: &'static str,
}

impl CommandLine {
    pub(crate) const fn new(text: &'static str) -> Self {
        Self { text }
    }

    /// The value of the first word `name=value`.
    pub(crate) fn value(&self, name: &str) -> Option<&'static str> {
        self.text
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
    }

    /// The number (decimal, or hexadecimal with `0x`) of `name=number`, or `default` where the word is absent.
    ///
    /// # Panics
    /// When the value is no number: the test is wrong and says so.
    pub(crate) fn number(&self, name: &str, default: u64) -> u64 {
        let Some(text) = self.value(name) else {
            return default;
        };
        let number = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        match number {
            Ok(number) => number,
            Err(_) => panic!("command line: {name}={text} is not a number"),
        }
    }
}
