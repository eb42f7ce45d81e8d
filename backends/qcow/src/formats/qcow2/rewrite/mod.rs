//! Rewriting all metadata of an image at once: replacing its tables and snapshots, moving tables back to their old
//! places, and changing the width of refcounts. The tables are walked and counted as for a check ([`super::check`]).

mod refcount_width;
mod replace_tables;
mod restore_places;

pub(crate) use replace_tables::{NewTables, Replaced};
