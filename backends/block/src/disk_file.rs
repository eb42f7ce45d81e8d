//! The image that the command line names: opens it, and has the broker remove its journal at the end.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use bulkhead_daemon::Confinement;
use bulkhead_process::broker::Broker;
use bulkhead_process::usage;
use qcow::{AllowedFiles, Denied, Folder, Format, Image, OpenOptions};

use crate::{Args, confine};

/// The image of the command line.
pub(crate) struct DiskFile {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    writable: bool,
    /// The files that the image may name: those beside it, and those in `--allow-path`.
    allowed: AllowedFiles,
    folders: Vec<PathBuf>,
}

impl DiskFile {
    pub(crate) fn named(args: &Args) -> Result<Self> {
        let path = args
            .blk_file
            .as_ref()
            .ok_or_else(|| usage("no image is given: --blk-file PATH"))?;
        let format = args.format.ok_or_else(|| {
            let options = Format::NAMES.map(|name| format!("--format {name}"));
            usage(format!(
                "{}: its format must be declared: {}",
                path.display(),
                options.join(" or ")
            ))
        })?;
        let mut allowed = vec![Folder::of_image(path).context("cannot open the image")?];
        for folder in &args.allow_path {
            allowed.push(Folder::open(folder).context("--allow-path")?);
        }
        Ok(Self {
            path: std::path::absolute(path).context("cannot open the image")?,
            format,
            writable: !args.read_only,
            folders: allowed
                .iter()
                .map(|folder| folder.path().to_owned())
                .collect(),
            allowed: AllowedFiles::beneath(allowed)?,
        })
    }

    /// The confinement of the stage in which the image and the files that it names are opened.
    pub(crate) fn opening(&self) -> Result<Confinement> {
        let real = std::fs::canonicalize(&self.path).context("cannot open the image")?;
        let links = folders_of(&self.path);
        let beside = real
            .parent()
            .into_iter()
            .chain(links.iter().map(PathBuf::as_path));
        let folders = self.folders.iter().map(PathBuf::as_path).chain(beside);
        Ok(confine::opening(folders, self.writable))
    }

    pub(crate) fn open(&self) -> Result<Image> {
        let options = OpenOptions::new(self.format)
            .writable(self.writable)
            .journal(qcow::Journal::Keep)
            .follow_references()
            .allowed_files(self.allowed.clone());
        Image::open(&self.path, &options).map_err(|error| match error.denied() {
            Some(Denied::Outside { .. }) => {
                anyhow!("cannot open the image: {error}; --allow-path FOLDER allows another folder")
            }
            _ => anyhow::Error::new(error).context("cannot open the image"),
        })
    }

    /// Starts the broker that removes the journal at the end. Closing the image empties the journal, but the confined
    /// program cannot remove it.
    pub(crate) fn broker(&self) -> Result<Option<Broker>> {
        if !self.format.has_journal() || !self.writable {
            return Ok(None);
        }
        let Ok(journals) = qcow::journal_paths(&self.path) else {
            return Ok(None);
        };
        let start = || {
            let mut broker = Broker::start()?;
            for journal in &journals {
                broker.remove_empty_at_end(journal)?;
            }
            broker.seal()?;
            Ok::<_, std::io::Error>(broker)
        };
        start()
            .context("cannot start the process that removes the journal at the end")
            .map(Some)
    }
}

/// The folder that a path is in, and the folder of each symbolic link on the way to its target.
fn folders_of(path: &Path) -> Vec<PathBuf> {
    /// The most links that the kernel follows (path_resolution(7)).
    const LINKS: usize = 40;
    let mut folders = Vec::new();
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        let Some(folder) = path.parent().map(Path::to_owned) else {
            break;
        };
        let target = std::fs::read_link(&path);
        folders.push(folder.clone());
        match target {
            Ok(target) => path = folder.join(target),
            Err(_) => break,
        }
    }
    folders
}
