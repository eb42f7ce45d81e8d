//! The rings of a queue group.

use crate::ring::Ring;

/// The rings of a part: every `parts`th ring of the device.
#[derive(Debug)]
pub(crate) struct Rings {
    rings: Vec<Ring>,
    parts: u16,
}

impl Rings {
    /// The rings of part number `part`, of the device's `total`.
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
