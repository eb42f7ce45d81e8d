//! Host extents behind a guest range, for callers that do their own I/O.

use crate::storage::range_lock::RangeGuard;

/// Where a part of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: it reads as zeroes.
    Zero,
    /// In a file. What lies beyond its end reads as zeroes, unless [`crate::Image::was_cut_off`].
    File {
        /// Which of [`crate::Image::files`].
        file: usize,
        /// Where in it.
        offset: u64,
    },
}

/// A part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it begins in the request.
    pub at: usize,
    /// Its length in bytes.
    pub len: usize,
    /// Where it is.
    pub place: Place,
}

/// All parts of a request, in order. They stay where they are until this is dropped.
#[derive(Debug)]
pub struct Plan {
    /// The parts, without a gap.
    pub parts: Vec<Part>,
    _range: Option<RangeGuard>,
}

impl Plan {
    pub(crate) fn new(range: Option<RangeGuard>) -> Self {
        Self {
            parts: Vec::new(),
            _range: range,
        }
    }

    /// Adds a part that begins `at` bytes into the request; one with what it goes on from.
    pub(crate) fn add(&mut self, at: usize, len: usize, place: Place) {
        if let Some(last) = self.parts.last_mut() {
            let follows = match (last.place, place) {
                (Place::Zero, Place::Zero) => true,
                (Place::File { file, offset }, Place::File { file: f, offset: o }) => {
                    file == f && offset + last.len as u64 == o
                }
                _ => false,
            };
            if follows {
                last.len += len;
                return;
            }
        }
        self.parts.push(Part { at, len, place });
    }
}
