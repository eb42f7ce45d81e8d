//! Cache modes (`-t`, `-T`).

/// A cache mode. All of them use the page cache; they differ in when data must be durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cache {
    /// `none`, `writeback`, `writethrough`, `directsync`: durable when the command ends.
    Durable,
    /// `unsafe`: left to the kernel.
    Unsafe,
}

impl Cache {
    pub(crate) fn parse(mode: &str) -> Option<Self> {
        match mode {
            "none" | "off" | "directsync" | "writeback" | "writethrough" => Some(Self::Durable),
            "unsafe" => Some(Self::Unsafe),
            _ => None,
        }
    }
}
