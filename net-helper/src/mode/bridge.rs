//! Guests are ports of a bridge that exists and is not this program's. The bridge's owner decides what they reach.

use super::ForwardMode;

#[derive(Debug)]
pub(super) struct Bridge;

impl ForwardMode for Bridge {
    fn name(&self) -> &'static str {
        "bridge"
    }

    fn owns_bridge(&self) -> bool {
        false
    }
}
