//! Whether writes with RWF_NOWAIT work on the file system, which decides if io_uring or the thread pool does writes in
//! place.
//!
//! Some file systems (XFS) can write to the page cache without waiting, and then io_uring is fastest. Others (ext4)
//! cannot: the kernel hands each write of an io_uring to a worker thread, which costs more than our own threads, since
//! they take many requests at a time. The kernel does not report which it is, so the first writes are sent with
//! RWF_NOWAIT, and those that fail are repeated without.

/// How many writes are sent with RWF_NOWAIT.
const PROBES: u8 = 16;

/// What the probes have shown so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NowaitSupport {
    probes: u8,
    successes: u8,
}

impl NowaitSupport {
    /// No probes: the user wants all writes by io_uring.
    pub(crate) const ASSUMED: Self = Self {
        probes: PROBES,
        successes: PROBES,
    };

    /// Whether io_uring does the next write.
    pub(crate) fn use_ring(self) -> bool {
        self.probes < PROBES || self.successes > PROBES / 2
    }

    /// Whether the next write is a probe.
    pub(crate) fn is_probing(self) -> bool {
        self.probes < PROBES
    }

    /// Counts the result of a probe.
    pub(crate) fn probed(&mut self, success: bool) {
        if self.is_probing() {
            self.probes += 1;
            self.successes += u8::from(success);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_uring_writes_where_rwf_nowait_works() {
        for (successes, expected) in [(0, false), (7, false), (10, true), (16, true)] {
            let mut support = NowaitSupport::default();
            for number in 0..PROBES {
                assert!(support.use_ring() && support.is_probing());
                support.probed(number < successes);
            }
            assert!(!support.is_probing());
            assert_eq!(support.use_ring(), expected, "{successes}");
            support.probed(!expected);
            assert_eq!(support.use_ring(), expected, "it is settled");
        }
    }
}
