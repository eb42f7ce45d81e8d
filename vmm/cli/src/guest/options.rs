//! `VALUE[,key=value]…`: the form of `--disk` and `--net`.

use std::borrow::Cow;

/// The options after the first value, which [`Self::next`] returns one by one.
#[derive(Debug)]
pub(super) struct Options {
    parts: std::vec::IntoIter<Vec<u8>>,
    seen: Vec<Vec<u8>>,
}

/// One `key=value`.
#[derive(Debug)]
pub(super) struct Given {
    key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

impl Options {
    /// Splits at single commas, and returns the first value and the options. A double comma is one comma of a value.
    pub(super) fn split(text: &[u8]) -> (Vec<u8>, Self) {
        let mut parts = vec![Vec::new()];
        let mut rest = text.iter().copied().peekable();
        while let Some(byte) = rest.next() {
            if byte == b',' && rest.next_if_eq(&b',').is_none() {
                parts.push(Vec::new());
            } else if let Some(part) = parts.last_mut() {
                part.push(byte);
            }
        }
        let mut parts = parts.into_iter();
        let first = parts.next().unwrap_or_default();
        let seen = Vec::new();
        (first, Self { parts, seen })
    }

    /// The next option. Its key must be in `once` or `often`. Those in `once` may be given only once.
    pub(super) fn next(&mut self, once: &[&str], often: &[&str]) -> Result<Option<Given>, String> {
        let Some(part) = self.parts.next() else {
            return Ok(None);
        };
        let shown = String::from_utf8_lossy(&part).into_owned();
        let equals = part.iter().position(|&byte| byte == b'=');
        let (key, value) = part.split_at(equals.unwrap_or(part.len()));
        let is_in = |keys: &[&str]| keys.iter().any(|known| known.as_bytes() == key);
        if !is_in(once) && !is_in(often) {
            let known = [once, often].concat();
            let are = if known.len() == 1 { "is" } else { "are" };
            let known = known.join(", ");
            return Err(match shown.as_str() {
                "" => format!("there is no option after a comma: {known} {are} known"),
                _ => format!("unknown option '{shown}': {known} {are} known"),
            });
        }
        if equals.is_none() {
            return Err(format!("'{shown}' has no value: write {shown}=…"));
        }
        if is_in(once) && self.seen.iter().any(|seen| seen == key) {
            return Err(format!("{} is given twice", String::from_utf8_lossy(key)));
        }
        self.seen.push(key.to_owned());
        Ok(Some(Given {
            key: key.to_owned(),
            value: value.get(1..).unwrap_or_default().to_owned(),
        }))
    }
}

impl Given {
    pub(super) fn key(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.key)
    }

    /// The one of these words that the value is.
    pub(super) fn one_of<'a>(&self, words: &[&'a str]) -> Result<&'a str, String> {
        let is_it = |word: &&&str| word.as_bytes() == self.value;
        let found = words.iter().find(is_it).copied();
        found.ok_or_else(|| self.wrong(&words.join(" or ")))
    }

    pub(super) fn switch(&self) -> Result<bool, String> {
        Ok(self.one_of(&["on", "off"])? == "on")
    }

    /// The error for a value that is not `expected`.
    pub(super) fn wrong(&self, expected: &str) -> String {
        let value = String::from_utf8_lossy(&self.value);
        format!("{}: '{value}' is not {expected}", self.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(text: &str) -> Result<Option<Given>, String> {
        let (_, mut options) = Options::split(text.as_bytes());
        options.next(&["mode"], &["path"])
    }

    #[test]
    fn a_double_comma_is_one_of_the_value() {
        let (first, mut options) = Options::split(b"a,,b,mode=x,,y,path=1,path=2");
        assert_eq!(first, b"a,b");
        let values: Vec<_> = (0..3)
            .map(|_| options.next(&["mode"], &["path"]).unwrap().unwrap().value)
            .collect();
        assert_eq!(values, [&b"x,y"[..], b"1", b"2"]);
        assert!(options.next(&["mode"], &["path"]).unwrap().is_none());
    }

    #[test]
    fn what_is_wrong_with_an_option_is_said() {
        for (text, says) in [
            (
                "a,bus=ide",
                "unknown option 'bus=ide': mode, path are known",
            ),
            (
                "a,",
                "there is no option after a comma: mode, path are known",
            ),
            ("a,mode", "'mode' has no value: write mode=…"),
        ] {
            assert_eq!(next(text).unwrap_err(), says);
        }
        let (_, mut one) = Options::split(b"a,bus=ide");
        let error = one.next(&["mode"], &[]).unwrap_err();
        assert_eq!(error, "unknown option 'bus=ide': mode is known");
        let (_, mut twice) = Options::split(b"a,mode=x,mode=y");
        assert!(twice.next(&["mode"], &[]).is_ok());
        let error = twice.next(&["mode"], &[]).unwrap_err();
        assert_eq!(error, "mode is given twice");
    }

    #[test]
    fn a_switch_is_on_or_off() {
        let switch = |text: &str| next(text).unwrap().unwrap().switch();
        assert_eq!(switch("a,mode=on"), Ok(true));
        assert_eq!(switch("a,mode=off"), Ok(false));
        for wrong in ["maybe", "", "On", "true", "on,,"] {
            let error = switch(&format!("a,mode={wrong}")).unwrap_err();
            let value = wrong.replace(",,", ",");
            assert_eq!(error, format!("mode: '{value}' is not on or off"));
        }
    }
}
