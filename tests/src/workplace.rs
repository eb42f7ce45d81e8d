//! Where things are: the build folder on a development machine, `/bulkhead` inside an outer host.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::kernel::Kernel;

/// Where an outer host keeps what it was given.
pub const OUTER_HOST_FOLDER: &str = "/bulkhead";

/// The folders a test finds its programs and its kernel in.
#[derive(Clone, Debug)]
pub struct Workplace {
    /// The programs under test.
    pub programs: PathBuf,
    /// Cargo's target folder, or what stands for it in an outer host.
    pub target: PathBuf,
}

impl Workplace {
    /// Finds the folders from where the running program is.
    pub fn find() -> Result<Self> {
        let program = std::env::current_exe().context("path of the running program")?;
        if program.starts_with(OUTER_HOST_FOLDER) {
            let target = PathBuf::from(OUTER_HOST_FOLDER);
            return Ok(Self {
                programs: target.join("bin"),
                target,
            });
        }
        // Wherever CARGO_TARGET_DIR put it: TARGET/release/program, or TARGET/debug/deps/test.
        let target = program
            .ancestors()
            .find(|folder| folder.ends_with("release") || folder.ends_with("debug"))
            .and_then(Path::parent)
            .with_context(|| format!("{} is not in a cargo target folder", program.display()))?;
        Ok(Self {
            programs: target.join("release"),
            target: target.to_owned(),
        })
    }

    /// What `cargo xtask setup` made and what the bench keeps between runs.
    pub fn bench(&self) -> PathBuf {
        self.target.join("bench")
    }

    /// The kernel package, unpacked.
    pub fn kernel(&self) -> Result<Kernel> {
        Kernel::open(&self.bench().join("kernel"))
    }

    /// A program under test, which must have been built.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.programs.join(name);
        if !path.exists() {
            anyhow::bail!("{} is missing: run `cargo build --release`", path.display());
        }
        Ok(path)
    }
}

/// Whether this program runs inside an outer host of the nested bench.
pub fn in_outer_host() -> bool {
    Path::new(OUTER_HOST_FOLDER).join("command").exists()
}

/// A new folder on a disk, gone when it is dropped.
pub fn scratch_folder(workplace: &Workplace) -> Result<tempfile::TempDir> {
    let parent = match in_outer_host() {
        true => PathBuf::from("/work"),
        false => workplace.bench(),
    };
    tempfile::Builder::new()
        .prefix("scratch-")
        .tempdir_in(&parent)
        .with_context(|| parent.display().to_string())
}
