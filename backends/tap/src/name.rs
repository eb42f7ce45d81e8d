//! Interface names.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// The longest name an interface can have, in bytes (`IFNAMSIZ` less the terminating zero).
const MAX: usize = libc::IFNAMSIZ - 1;

/// The name of a network interface: 1 to 15 bytes, without `/`, `:`, `%`, white space or control characters, and not
/// `.` or `..`.
///
/// The kernel's own rule (`dev_valid_name`) and one addition: `%` would ask the kernel for a name rather than give one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// Checks a name.
    pub fn new(name: &str) -> Result<Self, Error> {
        let wrong = |why: String| Err(Error::name(format!("interface name {name:?} {why}")));
        if name.is_empty() {
            return wrong("is empty".into());
        }
        if name.len() > MAX {
            return wrong(format!("is longer than {MAX} bytes"));
        }
        if name == "." || name == ".." {
            return wrong("is not a name".into());
        }
        match name
            .chars()
            .find(|c| c.is_whitespace() || c.is_control() || "/:%".contains(*c))
        {
            Some(c) => wrong(format!("has {c:?} in it")),
            None => Ok(InterfaceName(name.to_owned())),
        }
    }

    /// What makes the kernel choose the first free name of `prefix0`, `prefix1`, ….
    pub(crate) fn pattern(prefix: &InterfaceName) -> Result<[u8; libc::IFNAMSIZ], Error> {
        let pattern = format!("{prefix}%d");
        if pattern.len() > MAX {
            return Err(Error::name(format!(
                "interface name prefix {:?} is too long",
                prefix.0
            )));
        }
        Ok(padded(&pattern))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn bytes(&self) -> [u8; libc::IFNAMSIZ] {
        padded(&self.0)
    }

    pub(crate) fn from_kernel(bytes: &[u8; libc::IFNAMSIZ]) -> Result<Self, Error> {
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        let text = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default());
        Self::new(&text)
    }
}

/// Zero-padded to the size the kernel wants; what does not fit is cut (callers have checked).
fn padded(text: &str) -> [u8; libc::IFNAMSIZ] {
    let mut bytes = [0; libc::IFNAMSIZ];
    for (to, from) in bytes.iter_mut().take(MAX).zip(text.bytes()) {
        *to = from;
    }
    bytes
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for InterfaceName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::new(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_fifteen_bytes_is_accepted_and_sixteen_are_refused() {
        assert_eq!(
            InterfaceName::new("abcdefghijklmno").unwrap().as_str(),
            "abcdefghijklmno"
        );
        let error = InterfaceName::new("abcdefghijklmnop").unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Name);
        assert_eq!(
            error.to_string(),
            "interface name \"abcdefghijklmnop\" is longer than 15 bytes"
        );
    }

    #[test]
    fn names_the_kernel_would_refuse_or_expand_are_refused() {
        for name in ["", ".", "..", "a/b", "a b", "a:1", "tap%d", "a\n", "a\0"] {
            assert_eq!(
                InterfaceName::new(name).unwrap_err().kind(),
                crate::ErrorKind::Name,
                "{name:?}"
            );
        }
    }

    #[test]
    fn length_is_counted_in_bytes_not_characters() {
        assert!(InterfaceName::new("ééééééé").is_ok(), "14 bytes");
        assert!(InterfaceName::new("éééééééé").is_err(), "16 bytes");
    }

    #[test]
    fn kernel_bytes_round_trip() {
        let name = InterfaceName::new("tap0").unwrap();
        assert_eq!(InterfaceName::from_kernel(&name.bytes()).unwrap(), name);
    }
}
