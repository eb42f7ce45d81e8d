//! `map`.

use crate::images::{ALL, sources};
use crate::pair::{Pair, reference_is_there};

#[test]
fn map_shows_the_same_extents() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    for image in ALL {
        pair.same_reading(&["map", image]);
        pair.same_reading(&["map", "--output=json", image]);
        pair.same_reading(&["map", "--output=json", "-s", "70k", "-l", "3M", image]);
        pair.same_reading(&["map", "--start-offset=100", "--max-l", "5000", image]);
    }
    pair.same_reading(&["map", "-s", "x", "base"]);
    pair.same_reading(&["map", "-l", "x", "base"]);
    pair.same_reading(&["map", "--output=json", "-s", "20M", "base"]);
}
