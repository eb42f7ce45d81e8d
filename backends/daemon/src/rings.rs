//! The rings that belong together.

use crate::ring::Ring;

/// The rings of a part: every `parts`th of the device's.
#[derive(Debug)]
pub(crate) struct Rings {
    rings: Vec<Ring>,
    parts: u16,
}

impl Rings {
    /// Those of part number `part`, of `total` in all.
    pub(crate) fn new(part: u16, parts: u16, total: u16) -> Self {
        let rings = (part..total).step_by(usize::from(parts.max(1)));
        Self {
            rings: rings.map(Ring::new).collect(),
            parts: parts.max(1),
        }
    }

    pub(crate) fn get(&self, index: u16) -> Option<&Ring> {
        let ring = self.rings.get(usize::from(index / self.parts))?;
        (ring.index == index).then_some(ring)
    }

    pub(crate) fn get_mut(&mut self, index: u16) -> Option<&mut Ring> {
        let ring = self.rings.get_mut(usize::from(index / self.parts))?;
        (ring.index == index).then_some(ring)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Ring> {
        self.rings.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Ring> {
        self.rings.iter_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.rings.len()
    }

    pub(crate) fn index_at(&self, place: usize) -> Option<u16> {
        self.rings.get(place).map(|ring| ring.index)
    }

    pub(crate) fn indexes(&self) -> Vec<u16> {
        self.rings.iter().map(|ring| ring.index).collect()
    }
}
