//! `cargo xtask setup`: what the other tasks need, installed by name or unpacked; quick when nothing is missing.

mod kernel;
mod packages;
mod tools;

use anyhow::Result;

use crate::project::Project;

pub(crate) use kernel::make as kernel;
pub(crate) use packages::install as packages;
pub(crate) use tools::{deny, fuzz, install as tools};

/// All of it.
pub(crate) fn everything(project: &Project) -> Result<()> {
    packages()?;
    kernel(project)?;
    tools(project)?;
    println!("setup: everything is here");
    Ok(())
}
