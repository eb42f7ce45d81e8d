//! Guests reach each other, and this host at its address on their network, and nothing else.

use super::ForwardMode;

#[derive(Debug)]
pub(super) struct Isolated;

impl ForwardMode for Isolated {
    fn name(&self) -> &'static str {
        "isolated"
    }
}
