//! Guests are ports of a bridge that exists and is somebody else's, who decides what they reach.

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
