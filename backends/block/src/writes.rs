//! Which way writes in place go.
//!
//! Many file systems do a write to page cache only with a thread that may wait (ext4 does). The kernel then gives each such
//! operation of an io_uring to a thread of its own making, which costs more than ours, who do many at a time. Others do it at
//! once, and nothing is faster. The kernel does not say which it is, so it is tried: the first writes are to fail rather than
//! wait, and those that do are done again.

/// How many writes are tried.
const TRIES: u8 = 16;

/// What is known about writes by io_uring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WritePath {
    tried: u8,
    at_once: u8,
}

impl WritePath {
    /// All of them go by io_uring, as the user wants it.
    pub(crate) const RING: Self = Self {
        tried: TRIES,
        at_once: TRIES,
    };

    /// Whether the next one goes by io_uring.
    pub(crate) fn is_ring(self) -> bool {
        self.tried < TRIES || self.at_once > TRIES / 2
    }

    /// Whether it is still to be found out.
    pub(crate) fn is_trying(self) -> bool {
        self.tried < TRIES
    }

    /// One was tried: it was done at once, or had to wait.
    pub(crate) fn tried(&mut self, at_once: bool) {
        if self.is_trying() {
            self.tried += 1;
            self.at_once += u8::from(at_once);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_go_on_by_io_uring_where_they_are_done_at_once() {
        for (at_once, expected) in [(0, false), (7, false), (10, true), (16, true)] {
            let mut path = WritePath::default();
            for number in 0..TRIES {
                assert!(path.is_ring() && path.is_trying());
                path.tried(number < at_once);
            }
            assert!(!path.is_trying());
            assert_eq!(path.is_ring(), expected, "{at_once}");
            path.tried(!expected);
            assert_eq!(path.is_ring(), expected, "it is settled");
        }
    }
}
