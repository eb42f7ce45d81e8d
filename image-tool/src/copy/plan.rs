//! What a range of the input needs: copying, zeroing, or nothing.

use qcow::Extent;

use super::Input;
use super::failure::Failure;
use super::salvage::Salvage;

/// The content of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Data, or possibly data.
    Data,
    /// Zeroes.
    Zero,
    /// The same as in the target's backing file: nothing to write.
    Backing,
}

/// A range to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) kind: Kind,
    /// Its number in the order of the disk.
    pub(crate) index: u64,
}

/// Divides the input into pieces.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    offset: u64,
    index: u64,
    /// Kind and end of the extent at `offset`, if it was looked up.
    extent: Option<(Kind, u64)>,
    /// Data of images at this depth of the input's chain, or deeper, is not written: the target's backing file has it.
    pub(crate) backing_depth: Option<u32>,
    /// Length of the target's backing file, if there is one.
    pub(crate) backing_len: Option<u64>,
    /// The longest piece of data.
    pub(crate) max_data: u64,
    /// Pieces are multiples of this; one that contains some data is data.
    pub(crate) unit: Option<u64>,
    /// The longest piece of zeroes, if zeroes are written as data.
    pub(crate) max_zero: Option<u64>,
    /// The target reads as zeroes, so zeroes are not written.
    pub(crate) skip_zeroes: bool,
    /// A range that cannot be mapped is read all the same.
    pub(crate) salvage: Option<Salvage>,
}

/// The longest range of one lookup.
const MAX_EXTENT: u64 = 1 << 30;

impl Plan {
    pub(crate) fn new(max_data: u64) -> Self {
        Self {
            offset: 0,
            index: 0,
            extent: None,
            backing_depth: None,
            backing_len: None,
            max_data,
            unit: None,
            max_zero: None,
            skip_zeroes: false,
            salvage: None,
        }
    }

    /// The same plan without warnings about damaged tables.
    pub(crate) fn quiet(&self) -> Self {
        Self {
            salvage: self.salvage.map(|_| Salvage { quiet: true }),
            ..self.clone()
        }
    }

    /// The next piece to write; `None` at the end of the input.
    pub(crate) fn next(&mut self, input: &Input) -> Result<Option<Piece>, Failure> {
        while let Some(mut piece) = self.cut(input)? {
            let is_skipped = match piece.kind {
                Kind::Backing => true,
                Kind::Zero => self.skip_zeroes,
                Kind::Data => false,
            };
            if !is_skipped {
                piece.index = self.index;
                self.index += 1;
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    fn cut(&mut self, input: &Input) -> Result<Option<Piece>, Failure> {
        if self.offset >= input.len() {
            return Ok(None);
        }
        let (mut kind, end) = match self.extent {
            Some((kind, end)) if end > self.offset => (kind, end),
            _ => self.map(input)?,
        };
        self.extent = Some((kind, end));
        let mut len = end - self.offset;
        if kind == Kind::Data {
            len = len.min(self.max_data);
        }
        if let Some(unit) = self.unit {
            if len < unit {
                len = unit.min(input.len() - self.offset);
                kind = Kind::Data;
            } else {
                len -= len % unit;
            }
        }
        if kind == Kind::Zero {
            len = len.min(self.max_zero.unwrap_or(u64::MAX));
        }
        let piece = Piece {
            offset: self.offset,
            len,
            kind,
            index: 0,
        };
        self.offset += len;
        Ok(Some(piece))
    }

    /// Kind and end of the extent at the current offset.
    fn map(&self, input: &Input) -> Result<(Kind, u64), Failure> {
        let Some(position) = input.at(self.offset) else {
            return Ok((Kind::Zero, input.len()));
        };
        let mut len = position.left.min(MAX_EXTENT);
        let mut beyond_backing = false;
        if let Some(backing_len) = self.backing_len {
            if self.offset >= backing_len {
                beyond_backing = true;
            } else {
                len = len.min(backing_len - self.offset);
            }
        }
        let extent = match self.backing_depth {
            Some(1) => position.disk.map_layer(position.offset, len),
            _ => position.disk.map(position.offset, len),
        };
        let extent = match (extent, self.salvage) {
            (Ok(extent), _) => extent,
            (Err(error), None) => return Err(Failure::Status(self.offset, error)),
            (Err(error), Some(salvage)) => {
                salvage.warn("reading block status at", self.offset, &error, &position);
                return Ok((Kind::Data, self.offset + len.min(position.damaged())));
            }
        };
        let kind = match kind_of(&extent, self.backing_depth) {
            Kind::Zero if beyond_backing => Kind::Backing,
            kind => kind,
        };
        let end = self.offset + extent.length;
        if !extent.missing || kind == Kind::Backing {
            return Ok((kind, end));
        }
        let Some(salvage) = self.salvage else {
            return Err(Failure::Missing(self.offset));
        };
        salvage.warn_of_missing(self.offset, extent.length);
        Ok((Kind::Zero, end))
    }
}

fn kind_of(extent: &Extent, backing_depth: Option<u32>) -> Kind {
    let is_in_backing = backing_depth.is_some_and(|depth| !extent.present || extent.depth >= depth);
    match extent {
        _ if is_in_backing => Kind::Backing,
        Extent { zero: true, .. } | Extent { present: false, .. } => Kind::Zero,
        _ => Kind::Data,
    }
}
