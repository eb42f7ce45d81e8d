//! Where the sources and the target folder are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folders every task works in.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    /// The workspace.
    pub(crate) sources: PathBuf,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
}

impl Project {
    /// Finds them from where this program was built and is.
    pub(crate) fn find() -> Result<Self> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .context("workspace")?;
        let program = std::env::current_exe().context("path of xtask")?;
        // TARGET/debug/xtask
        let target = program.ancestors().nth(2).context("target folder")?;
        Ok(Self {
            sources: sources.to_owned(),
            target: target.to_owned(),
        })
    }

    /// What setup makes for the nested bench; `bulkhead-tests` looks here.
    pub(crate) fn bench(&self) -> PathBuf {
        self.target.join("bench")
    }

    /// Cargo's tools, installed here and not for the user.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// A program built for release.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }
}
