//! Which way writes in place go.
//!
//! Many file systems do a write to page cache only with a thread that may wait (ext4 does). The kernel then gives each such operation of an
//! io_uring to a thread of its own making, which costs more than ours, who do many at a time. Others do it at once, and nothing is faster.
//! The kernel does not say which it is, so it is tried.

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

    /// What became of `writes`: so many of them were done when the kernel had been told.
    pub(crate) fn tried(&mut self, writes: usize, at_once: usize) {
        let most = usize::from(TRIES - self.tried.min(TRIES));
        let writes = writes.min(most);
        self.tried += writes as u8;
        self.at_once += at_once.min(writes) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_go_on_by_io_uring_where_they_are_done_at_once() {
        for (at_once, expected) in [(0, false), (7, false), (10, true), (20, true)] {
            let mut path = WritePath::default();
            assert!(path.is_ring() && path.is_trying());
            path.tried(20, at_once);
            assert!(!path.is_trying());
            assert_eq!(path.is_ring(), expected, "{at_once}");
            path.tried(5, 5);
            assert_eq!(path.is_ring(), expected, "it is settled");
        }
    }
}
