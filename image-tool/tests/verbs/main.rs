//! The verbs that `create`, `info`, `check` and `convert` (`images.rs`) leave, against qemu-img: the same words,
//! statuses, JSON and content. A file for each verb.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod amend;
mod bench;
mod bitmap;
mod commit;
mod compare;
mod dd;
mod images;
mod map;
mod measure;
#[path = "../pair/mod.rs"]
mod pair;
mod rebase;
mod resize;
mod snapshot;
