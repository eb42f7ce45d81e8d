//! `bulkhead logs`: prints what a guest's processes report and what the guest writes to its console.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use rustix::fs::inotify;

use crate::domain::Domain;
use crate::guest::guest_name;
use crate::runtime;

/// A guest whose logs are printed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Guest: its name, or its id or UUID while it is defined or runs
    #[arg(value_name = "DOMAIN")]
    domain: String,
    /// Print what is added, too, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Print the console's output only
    #[arg(long, conflicts_with = "messages")]
    console: bool,
    /// Print the processes' messages only
    #[arg(long)]
    messages: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let folder = folder(&args.domain)?;
    let mut tails = Vec::new();
    if !args.console {
        tails.push(Tail::new(folder.join("messages.log")));
    }
    if !args.messages {
        tails.push(Tail::new(folder.join("console.log")));
    }
    // The watch begins before the first read, so that nothing is missed.
    let watch = match args.follow {
        true => Some(watch(&folder).with_context(|| format!("cannot watch {}", folder.display()))?),
        false => None,
    };
    let mut out = io::stdout().lock();
    let older: Vec<_> = tails.iter().map(Tail::older).collect();
    for (older, tail) in older.into_iter().zip(&mut tails) {
        if let Ok(mut older) = File::open(older) {
            finish(io::copy(&mut older, &mut out).map(drop))?;
        }
        finish(tail.print(&mut out))?;
    }
    finish(out.flush())?;
    let Some(watch) = watch else {
        return Ok(ExitCode::SUCCESS);
    };
    let mut events = [0; 4096];
    loop {
        rustix::io::read(&watch, &mut events).context("cannot watch the logs")?;
        for tail in &mut tails {
            finish(tail.print(&mut out))?;
        }
        if out.flush().is_err() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// The folder with the logs of a guest. They are there longer than it is.
fn folder(words: &str) -> anyhow::Result<PathBuf> {
    if guest_name(words).is_ok() {
        let folder = runtime::logs_of(words)?;
        if folder.is_dir() {
            return Ok(folder);
        }
    }
    let domain = Domain::find(words)?;
    let folder = runtime::logs_of(domain.name())?;
    if !folder.is_dir() {
        bail!(
            "guest '{}' has no logs: it never ran in the background",
            domain.name()
        );
    }
    Ok(folder)
}

/// A reader that has gone away is no error.
fn finish(printed: io::Result<()>) -> anyhow::Result<()> {
    match printed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("standard output"),
    }
}

fn watch(folder: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    let changes = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
    inotify::add_watch(&watch, folder, changes)?;
    Ok(watch)
}

/// A log, and how much of it has been printed.
struct Tail {
    path: PathBuf,
    file: Option<File>,
}

impl Tail {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// The path of the log's older half.
    fn older(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".1");
        path.into()
    }

    /// Prints what was added. A log that was full goes on in a new file of the same name.
    fn print(&mut self, out: &mut impl Write) -> io::Result<()> {
        loop {
            if let Some(file) = &mut self.file {
                let mut added = Vec::new();
                file.read_to_end(&mut added)?;
                out.write_all(&added)?;
            }
            let Ok(mut now) = File::open(&self.path) else {
                return Ok(());
            };
            let same = |file: &File| Some(file.metadata().ok()?.ino());
            if self
                .file
                .as_ref()
                .is_some_and(|file| same(file) == same(&now))
            {
                return Ok(());
            }
            now.seek(SeekFrom::Start(0))?;
            self.file = Some(now);
        }
    }
}
