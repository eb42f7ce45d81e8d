//! Watches the guests of this user: those that run by their supervisors, those that begin by the runtime folder.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use bulkhead_process::signals;
use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use super::line::Line;
use crate::supervise::control::{Change, Request};
use crate::supervise::state::{LastEnd, Reason, RunState, State};
use crate::{live, runtime};

/// The pause before a guest that cannot be watched is looked for again.
const PAUSE: Duration = Duration::from_millis(100);

/// What the threads report.
pub(super) enum News {
    /// Something has changed in the runtime folder.
    Look,
    /// A guest is watched from now on, and is in this state.
    Watched(String, RunState),
    Changed(Change),
    /// A guest is watched no longer: it has ended, or its supervisor has.
    Lost(String),
    /// A signal wants the program to end.
    Interrupt,
}

/// A guest that is watched.
#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    /// Whether it has begun, as far as was reported.
    has_begun: bool,
    has_ended: bool,
}

/// The guests that are watched.
pub(super) struct Watch {
    base: PathBuf,
    sender: Sender<News>,
    news: Receiver<News>,
    guests: BTreeMap<String, Watched>,
}

impl Watch {
    /// Watches all guests that run, and returns when it does.
    pub(super) fn start() -> io::Result<Self> {
        let base = runtime::known_base();
        let (sender, news) = unbounded();
        // Signals are blocked before there are threads.
        let signals = signals::block_termination()?;
        let events = inotify::init(CreateFlags::CLOEXEC)?;
        add_watches(&events, &base);
        let mut watch = Self {
            base: base.clone(),
            sender: sender.clone(),
            news,
            guests: BTreeMap::new(),
        };
        watch.look();
        watch.wait_for_first();
        std::thread::Builder::new()
            .name("inotify".into())
            .spawn(move || watch_folder(&events, &signals, &base, &sender))?;
        Ok(watch)
    }

    /// Waits until the guests that were found are watched, so that nothing of them is missed after that.
    fn wait_for_first(&mut self) {
        let mut waiting: BTreeSet<String> = self.guests.keys().cloned().collect();
        let mut early = Vec::new();
        while !waiting.is_empty() {
            match self.news.recv() {
                Ok(News::Watched(name, _)) => {
                    waiting.remove(&name);
                    self.guests.entry(name).or_default().has_begun = true;
                }
                Ok(News::Lost(name)) if waiting.remove(&name) => {
                    self.guests.remove(&name);
                }
                Ok(news) => early.push(news),
                Err(_) => break,
            }
        }
        for news in early {
            let _ = self.sender.send(news);
        }
    }

    pub(super) fn news(&self) -> &Receiver<News> {
        &self.news
    }

    /// The events that follow from a report.
    pub(super) fn lines(&mut self, news: News) -> Vec<Line> {
        match news {
            News::Look => self.look(),
            News::Watched(name, state) => {
                let guest = self.guests.entry(name.clone()).or_default();
                if state != RunState::Starting && !guest.has_begun {
                    guest.has_begun = true;
                    let line = Line::lifecycle(&name, RunState::Running, Reason::Booted);
                    return line.into_iter().collect();
                }
            }
            News::Changed(change) => return self.changed(&change).into_iter().collect(),
            News::Lost(name) => return self.lost(&name).into_iter().collect(),
            News::Interrupt => {}
        }
        Vec::new()
    }

    /// A guest goes on if its supervisor was killed and is replaced.
    fn lost(&mut self, name: &str) -> Option<Line> {
        let guest = self.guests.remove(name).unwrap_or_default();
        let mut line = None;
        if guest.has_begun && !guest.has_ended {
            if live::get(&self.base, name).is_some() {
                self.watch(name, guest);
            } else {
                // It has ended before its next supervisor was found.
                let reason = LastEnd::read(&self.base, name).map(|end| end.reason);
                let reason = reason.unwrap_or(Reason::Unknown);
                line = Line::lifecycle(name, RunState::ShutOff, reason);
            }
        }
        // The next guest of this name may have begun already.
        self.look();
        line
    }

    fn changed(&mut self, change: &Change) -> Option<Line> {
        let guest = self.guests.entry(change.name.clone()).or_default();
        match change.state {
            RunState::Starting if guest.has_begun => return Some(Line::reboot(&change.name)),
            // After a reset, or if it was seen to run already.
            RunState::Running if change.reason == Reason::Booted && guest.has_begun => return None,
            RunState::Running => guest.has_begun = true,
            RunState::ShutOff => guest.has_ended = true,
            _ => {}
        }
        Line::lifecycle(&change.name, change.state, change.reason)
    }

    /// Watches each guest that is not watched yet.
    fn look(&mut self) {
        for name in live::names(&self.base) {
            // A supervisor that was killed is replaced.
            if !self.guests.contains_key(&name) && live::get(&self.base, &name).is_some() {
                self.watch(&name, Watched::default());
            }
        }
    }

    fn watch(&mut self, name: &str, guest: Watched) {
        let (base, sender) = (self.base.clone(), self.sender.clone());
        let of = name.to_owned();
        let started = std::thread::Builder::new()
            .name("guest".into())
            .spawn(move || {
                if follow(&base, &of, &sender).is_err() {
                    // It is just beginning, or ending, or has as many clients as it takes.
                    std::thread::sleep(PAUSE);
                }
                let _ = sender.send(News::Lost(of));
            });
        if started.is_ok() {
            self.guests.insert(name.to_owned(), guest);
        }
    }
}

/// Reports the changes of a guest until its supervisor ends.
fn follow(base: &Path, name: &str, sender: &Sender<News>) -> anyhow::Result<()> {
    let (stream, _) = live::connect(base, name, &Request::Events)?;
    // The state is read after the subscription, so that no change is between the two.
    let state = State::read(&base.join(name))?.context("the guest has ended")?;
    sender.send(News::Watched(name.to_owned(), state.state))?;
    for line in BufReader::new(stream).lines() {
        sender.send(News::Changed(serde_json::from_str(&line?)?))?;
    }
    Ok(())
}

/// Reports whenever something changes in the runtime folder or a guest's.
fn watch_folder(events: &OwnedFd, signals: &signals::SignalFd, base: &Path, sender: &Sender<News>) {
    let mut buffer = [0u8; 4096];
    loop {
        // A folder that has come meanwhile is watched, and looked into after that.
        add_watches(events, base);
        if sender.send(News::Look).is_err() {
            return;
        }
        let mut fds = [
            PollFd::new(events, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        let [folder, signal] = fds.map(|fd| !fd.revents().is_empty());
        if signal {
            let _ = sender.send(News::Interrupt);
            return;
        }
        if folder {
            // What has changed is looked for; here it matters only that something has.
            let _ = rustix::io::read(events, &mut buffer);
        }
    }
}

/// Watches the runtime folder, the folder that it is in, since it goes with the last guest, and each guest's.
fn add_watches(events: &OwnedFd, base: &Path) {
    const ENTRIES: WatchFlags = WatchFlags::CREATE.union(WatchFlags::MOVED_TO);
    let guests = live::names(base).into_iter().map(|name| base.join(name));
    let folders = base.parent().map(Path::to_owned).into_iter();
    let folders = folders.chain([base.to_owned()]).chain(guests);
    for folder in folders {
        // It may be missing, or be a file.
        let _ = inotify::add_watch(events, &folder, ENTRIES | WatchFlags::ONLYDIR);
    }
}
