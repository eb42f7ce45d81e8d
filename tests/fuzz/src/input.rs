//! What the bytes of an input stand for: operations, the image they are done to, and what is below that image.

use std::borrow::Cow;

use qcow::{Discard, Format, OpenOptions};

use crate::hostile;
use crate::program::Step;

/// The most steps of an input.
pub const MOST_STEPS: u8 = 31;
/// In the first byte: what is discarded is not given back to the host.
const KEEP: u8 = 32;
/// In the first byte: the end of the input is recipes of images below the image.
const LAYERS: u8 = 64;
/// In the first byte: the external data file holds something.
const DATA: u8 = 128;
/// The most hostile images below the image.
const MOST_LAYERS: usize = 3;
/// In the last byte of a layer: another one is below it.
const MORE: u8 = 16;

/// An input, taken apart.
pub struct Input<'a> {
    /// The operations.
    pub steps: Vec<Step>,
    /// The image.
    pub image: Cow<'a, [u8]>,
    /// Images below it, each of which lies on the next.
    pub below: Vec<Cow<'a, [u8]>>,
    /// The image is one of the sound ones, as it was made.
    pub is_untouched: bool,
    /// Whether the external data file holds something.
    pub has_data: bool,
    keep: bool,
}

impl<'a> Input<'a> {
    /// Takes an input apart: its first byte has the number of steps and flags, then the steps come, then the image; layers below are
    /// found from the end.
    pub fn of(bytes: &'a [u8]) -> Self {
        let (first, rest) = match bytes.split_first() {
            Some((first, rest)) => (*first, rest),
            None => (0, bytes),
        };
        let length = usize::from(first & MOST_STEPS) * Step::LEN;
        let (steps, rest) = rest.split_at(length.min(rest.len() / Step::LEN * Step::LEN));
        let (image, below) = match first & LAYERS {
            0 => (rest, Vec::new()),
            _ => layers(rest),
        };
        Self {
            steps: steps.chunks_exact(Step::LEN).map(Step::new).collect(),
            image: hostile::image(image),
            is_untouched: hostile::is_untouched(image),
            below: below.into_iter().map(hostile::image).collect(),
            has_data: first & DATA != 0,
            keep: first & KEEP != 0,
        }
    }

    /// How the image is opened for writing.
    pub fn writable(&self) -> OpenOptions {
        let discard = match self.keep {
            true => Discard::Ignore,
            false => Discard::Unmap,
        };
        OpenOptions::new(Format::Qcow2)
            .writable(true)
            .discard(discard)
    }

    /// The first step as a way to do the others, and those.
    pub fn way(&self) -> (Step, &[Step]) {
        match self.steps.split_first() {
            Some((first, rest)) => (*first, rest),
            None => (Step::new(&[0; Step::LEN]), &[]),
        }
    }
}

/// The image, and the recipes of the layers behind it.
fn layers(bytes: &[u8]) -> (&[u8], Vec<&[u8]>) {
    let mut left = bytes;
    let mut layers = Vec::new();
    while let Some((last, before)) = left.split_last() {
        let recipe = hostile::recipe_len(usize::from(last % MORE));
        let Some(start) = before.len().checked_sub(recipe) else {
            break;
        };
        let (head, layer) = before.split_at(start);
        layers.push(layer);
        left = head;
        if last & MORE == 0 || layers.len() == MOST_LAYERS {
            break;
        }
    }
    (left, layers)
}

/// Joins steps and image as [`Input::of`] takes them apart.
pub fn join(steps: &[[u8; Step::LEN]], image: &[u8]) -> Vec<u8> {
    let count = u8::try_from(steps.len()).unwrap_or(MOST_STEPS);
    let mut input = vec![count.min(MOST_STEPS)];
    input.extend(steps.iter().take(MOST_STEPS.into()).flatten());
    input.extend(image);
    input
}

/// Puts images below that of an input, the next one first: each a recipe, of at most 15 patches.
pub fn put_below(input: &mut Vec<u8>, recipes: &[Vec<u8>]) {
    if let Some(first) = input.first_mut() {
        *first |= LAYERS | DATA;
    }
    // What is found first, from the end, is next below the image.
    for (index, recipe) in recipes.iter().enumerate().rev() {
        let patches = u8::try_from(hostile::patches_of(recipe)).unwrap_or(0);
        let more = if index + 1 < recipes.len() { MORE } else { 0 };
        input.extend(recipe);
        input.push(patches | more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_joined_is_found_again() {
        let mut input = join(&[[7; Step::LEN]; 2], &hostile::recipe(3, &[]));
        let patch = [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        put_below(
            &mut input,
            &[hostile::recipe(1, &[patch]), hostile::recipe(2, &[])],
        );
        let found = Input::of(&input);
        assert_eq!(found.steps.len(), 2);
        assert_eq!(found.image, hostile::image(&hostile::recipe(3, &[])));
        assert_eq!(found.below.len(), 2);
        assert_eq!(
            found.below[0],
            hostile::image(&hostile::recipe(1, &[patch]))
        );
        assert_eq!(found.below[1], hostile::image(&hostile::recipe(2, &[])));
    }
}
