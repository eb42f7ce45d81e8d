//! Netlink attributes: length, type, value, padding. Numbers are in network byte order, as nf_tables has them.

/// Marks an attribute that holds attributes (`NLA_F_NESTED`).
const NESTED: u16 = 1 << 15;

/// A sequence of attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn new() -> Self {
        Attributes::default()
    }

    /// Adds bytes.
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // A value is a name, a number or a few rules, and far shorter than the 64 KiB that the length field allows.
        let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a zero-terminated string.
    pub(crate) fn string(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Adds a number.
    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds one attribute that contains others.
    pub(crate) fn nest(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_padded_and_nests_hold_their_attributes() {
        let bytes = Attributes::new()
            .nest(2, Attributes::new().string(1, "ab"))
            .number(3, 1)
            .into_bytes();
        assert_eq!(
            bytes,
            [
                &12u16.to_ne_bytes()[..],
                &0x8002u16.to_ne_bytes(),
                &7u16.to_ne_bytes(),
                &1u16.to_ne_bytes(),
                b"ab\0\0",
                &8u16.to_ne_bytes(),
                &3u16.to_ne_bytes(),
                &[0, 0, 0, 1],
            ]
            .concat()
        );
    }
}
