//! What a range of the input needs: copying, zeroing, or nothing.

use qcow::Extent;

use super::Input;
use super::salvage::Salvage;

/// What a range holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Data, or what may be data.
    Data,
    /// Zeroes.
    Zero,
    /// What the backing file of the target shows there already.
    Backing,
}

/// A piece of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) kind: Kind,
    /// Its place among the pieces.
    pub(crate) index: u64,
}

/// Walks the input and cuts it into pieces.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    offset: u64,
    index: u64,
    /// The extent at `offset`, when it is known.
    extent: Option<(Kind, u64)>,
    /// What images of the input's chain at this depth or further down hold stays unwritten: the target has it already.
    pub(crate) above: Option<u32>,
    /// Where the target's backing file ends, if that is known.
    pub(crate) backing_len: Option<u64>,
    /// The most data in one piece.
    pub(crate) max_data: u64,
    /// Pieces are multiples of this, and a piece with any data in it is data.
    pub(crate) unit: Option<u64>,
    /// The most zeroes in one piece, when they are to be written as data.
    pub(crate) max_zero: Option<u64>,
    /// The target reads as zeroes: there is nothing to do about them.
    pub(crate) skip_zeroes: bool,
    /// Where nobody knows what there is, reading is tried.
    pub(crate) salvage: Option<Salvage>,
}

/// The most that is asked about at a time.
const MAX_EXTENT: u64 = 1 << 30;

impl Plan {
    pub(crate) fn new(max_data: u64) -> Self {
        Self {
            offset: 0,
            index: 0,
            extent: None,
            above: None,
            backing_len: None,
            max_data,
            unit: None,
            max_zero: None,
            skip_zeroes: false,
            salvage: None,
        }
    }

    /// The same, and nothing is said about what cannot be read.
    pub(crate) fn quiet(&self) -> Self {
        Self {
            salvage: self.salvage.map(|_| Salvage { quiet: true }),
            ..self.clone()
        }
    }

    /// The next piece that needs something done; `None` at the end of the input. The error comes with the offset asked
    /// about.
    pub(crate) fn next(&mut self, input: &Input) -> Result<Option<Piece>, (u64, qcow::Error)> {
        while let Some(mut piece) = self.cut(input)? {
            let idle = match piece.kind {
                Kind::Backing => true,
                Kind::Zero => self.skip_zeroes,
                Kind::Data => false,
            };
            if !idle {
                piece.index = self.index;
                self.index += 1;
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    fn cut(&mut self, input: &Input) -> Result<Option<Piece>, (u64, qcow::Error)> {
        if self.offset >= input.len() {
            return Ok(None);
        }
        let (mut kind, end) = match self.extent {
            Some((kind, end)) if end > self.offset => (kind, end),
            _ => self.look(input)?,
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

    /// The extent at the present offset: what it is and where it ends.
    fn look(&self, input: &Input) -> Result<(Kind, u64), (u64, qcow::Error)> {
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
        let extent = match self.above {
            Some(1) => position.disk.map_layer(position.offset, len),
            _ => position.disk.map(position.offset, len),
        };
        let extent = match (extent, self.salvage) {
            (Ok(extent), _) => extent,
            (Err(error), None) => return Err((self.offset, error)),
            (Err(error), Some(salvage)) => {
                salvage.warn("reading block status at", self.offset, &error, &position);
                return Ok((Kind::Data, self.offset + len.min(position.damaged())));
            }
        };
        let kind = match kind_of(&extent, self.above) {
            Kind::Zero if beyond_backing => Kind::Backing,
            kind => kind,
        };
        Ok((kind, self.offset + extent.length))
    }
}

fn kind_of(extent: &Extent, above: Option<u32>) -> Kind {
    let below = above.is_some_and(|depth| !extent.present || extent.depth >= depth);
    match extent {
        _ if below => Kind::Backing,
        Extent { zero: true, .. } | Extent { present: false, .. } => Kind::Zero,
        _ => Kind::Data,
    }
}
