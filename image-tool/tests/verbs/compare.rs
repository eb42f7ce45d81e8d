//! `compare`.

use crate::images::{ALL, sources};
use crate::pair::{Pair, reference_is_there};

#[test]
fn compare_finds_the_same_difference() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    for first in ALL {
        for second in ALL {
            pair.same_reading(&["compare", first, second]);
            pair.same_reading(&["compare", "-s", first, second]);
        }
    }
    for line in [
        "compare",
        "compare base",
        "compare base nope",
        "compare -q base mid",
        "compare -f raw -F raw base mid",
        "compare -f foo base mid",
        "compare -T foo base mid",
        "compare --image-opts -f raw base mid",
        "compare -U top compressed",
    ] {
        pair.same_reading(&line.split(' ').collect::<Vec<_>>());
    }
}
