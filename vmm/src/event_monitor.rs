//! The event monitor: what happens to the guest, as JSON objects in a file, in Cloud Hypervisor's form
//! (`docs/event-monitor.md` there). The last one, `vmm.shutdown`, says how the guest ended.
//!
//! While the guest runs, a thread of its own writes them, so that nobody else waits for the file. Before and after that
//! the main thread does. A reader that is slow is not waited for: the oldest events are lost.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_process::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
use serde_json::{Map, Value};

/// How many events are kept for a slow reader.
const PENDING_MAX: usize = 1024;
/// How long the end of the monitor waits for a file that takes nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// Names and values that say more about an event.
pub(crate) type Properties<'a> = &'a [(&'a str, String)];

/// Where an event comes from.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Source {
    /// The monitor.
    Vmm,
    /// The guest's machine.
    Vm,
    /// What runs in it.
    Guest,
}

#[derive(Serialize)]
struct Event<'a> {
    /// Since the monitor started.
    timestamp: Duration,
    source: Source,
    event: &'a str,
    properties: Option<Map<String, Value>>,
}

/// The events of this monitor, and the file they go to, if there is one.
pub(crate) struct EventMonitor {
    start: Instant,
    log: Option<Arc<Log>>,
}

struct Log {
    file: File,
    state: Mutex<State>,
    /// Signalled when `state` changes.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pending: VecDeque<Vec<u8>>,
    /// The thread runs, which writes them.
    threaded: bool,
    /// The thread is writing an event that is not pending any more.
    writing: bool,
    /// How many events were written or given up so far.
    done: u64,
    /// A warning about the file was written.
    warned: bool,
}

impl EventMonitor {
    /// Opens the file, without waiting for a reader, to append to it. Made anew, it has mode 0600.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let log = Log {
            file: open(path)?,
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        Ok(Self {
            start: Instant::now(),
            log: Some(Arc::new(log)),
        })
    }

    /// Nobody is interested in events.
    pub(crate) fn off() -> Self {
        Self {
            start: Instant::now(),
            log: None,
        }
    }

    /// Starts the thread that writes. `enter` is what it does first.
    pub(crate) fn start_thread(&self, enter: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let Some(log) = self.log.clone() else {
            return Ok(());
        };
        log.lock().threaded = true;
        thread::Builder::new()
            .name("event-monitor".into())
            .spawn(move || {
                enter();
                log.write_for_ever();
            })?;
        Ok(())
    }

    /// Reports an event. Never waits.
    pub(crate) fn report(&self, source: Source, event: &str, properties: Properties<'_>) {
        let Some(log) = &self.log else {
            return;
        };
        let event = Event {
            timestamp: self.start.elapsed(),
            source,
            event,
            properties: (!properties.is_empty()).then(|| {
                let each = properties.iter();
                each.map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str())))
                    .collect()
            }),
        };
        // Strings and numbers can always be written as JSON.
        if let Ok(text) = serde_json::to_string_pretty(&event) {
            log.add(format!("{text}\n\n").into_bytes());
        }
    }

    /// Waits until all events are written, or the file takes no more.
    pub(crate) fn finish(&self) {
        if let Some(log) = &self.log {
            log.drain();
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o600);
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    match options.clone().create_new(true).open(path) {
        Ok(file) => {
            // The umask may have taken more away.
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // A FIFO that is open for reading, too, is there before its reader and between two of them.
            let is_fifo = std::fs::metadata(path)?.file_type().is_fifo();
            options.read(is_fifo).open(path)
        }
        Err(error) => Err(error),
    }
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, event: Vec<u8>) {
        let mut state = self.lock();
        if state.pending.len() == PENDING_MAX {
            state.pending.pop_front();
            state.warn("its reader is too slow: the oldest events are lost");
        }
        state.pending.push_back(event);
        match state.threaded {
            true => self.changed.notify_all(),
            false => self.write_pending(&mut state),
        }
    }

    /// Writes what the file takes now.
    fn write_pending(&self, state: &mut State) {
        while let Some(event) = state.pending.front_mut() {
            match self.write(event) {
                Ok(()) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => state.warn(&error.to_string()),
            }
            state.pending.pop_front();
        }
    }

    /// Writes an event, and removes from it what is written.
    fn write(&self, event: &mut Vec<u8>) -> Result<(), Errno> {
        while !event.is_empty() {
            match rustix::io::write(&self.file, event) {
                Ok(len) => drop(event.drain(..len)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The thread. It may wait for ever.
    fn write_for_ever(&self) {
        let mut state = self.lock();
        loop {
            let Some(mut event) = state.pending.pop_front() else {
                let waited = self.changed.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.writing = true;
            drop(state);
            let mut written = self.write(&mut event);
            while written == Err(Errno::AGAIN) {
                // The next write returns an error, if there is one.
                let _ = poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], None);
                written = self.write(&mut event);
            }
            state = self.lock();
            if let Err(error) = written {
                state.warn(&error.to_string());
            }
            state.writing = false;
            state.done += 1;
            self.changed.notify_all();
        }
    }

    fn drain(&self) {
        let mut state = self.lock();
        if !state.threaded {
            self.write_pending(&mut state);
            let patience = Timespec::try_from(PATIENCE).unwrap_or_default();
            while !state.pending.is_empty() {
                let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
                if !matches!(poll(&mut fds, Some(&patience)), Ok(1..)) {
                    return;
                }
                self.write_pending(&mut state);
            }
        }
        while state.writing || !state.pending.is_empty() {
            let before = state.done;
            let waited = self.changed.wait_timeout(state, PATIENCE);
            let (now, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() && now.done == before {
                return;
            }
            state = now;
        }
    }
}

impl State {
    /// Warns of the file's first failure.
    fn warn(&mut self, why: &str) {
        if !std::mem::replace(&mut self.warned, true) {
            warn(&format!("--event-monitor: {why}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn events(text: &str) -> Vec<Value> {
        let events = serde_json::Deserializer::from_str(text).into_iter();
        events.map(Result::unwrap).collect()
    }

    #[test]
    fn an_event_has_cloud_hypervisors_form() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let monitor = EventMonitor::open(&path).unwrap();
        monitor.report(Source::Vmm, "starting", &[]);
        monitor.report(Source::Guest, "panic", &[("event", "a \"b\"\n".into())]);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{\n  \"timestamp\": {\n    \"secs\": 0,\n    \"nanos\": "));
        assert!(text.ends_with(
            "  \"source\": \"guest\",\n  \"event\": \"panic\",\n  \"properties\": {\n    \"event\": \"a \\\"b\\\"\\n\"\n  }\n}\n\n"
        ));
        assert!(events(&text)[0]["properties"].is_null());
    }

    #[test]
    fn the_thread_writes_in_order_and_the_end_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let monitor = EventMonitor::open(&path).unwrap();
        monitor.report(Source::Vmm, "0", &[]);
        monitor.start_thread(|| ()).unwrap();
        for number in 1..500 {
            monitor.report(Source::Vm, &number.to_string(), &[]);
        }
        monitor.finish();
        let events = events(&std::fs::read_to_string(&path).unwrap());
        let names: Vec<_> = events
            .iter()
            .map(|event| event["event"].as_str().unwrap())
            .collect();
        let expected: Vec<_> = (0..500).map(|number| number.to_string()).collect();
        assert_eq!(names, expected);
    }

    /// With and without the thread.
    #[test]
    fn a_fifo_that_nobody_reads_is_not_waited_for_and_keeps_the_latest() {
        for threaded in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("fifo");
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
            let monitor = EventMonitor::open(&path).unwrap();
            if threaded {
                monitor.start_thread(|| ()).unwrap();
            }
            // More than the pipe and the queue hold.
            for number in 0..5000 {
                monitor.report(Source::Vm, &number.to_string(), &[]);
            }
            monitor.finish();
            let log = monitor.log.as_ref().unwrap();
            assert_eq!(log.lock().pending.len(), PENDING_MAX);
            let last = log.lock().pending.back().unwrap().clone();
            assert_eq!(
                events(std::str::from_utf8(&last).unwrap())[0]["event"],
                "4999"
            );

            let mut reader = File::open(&path).unwrap();
            let read = thread::spawn(move || {
                let mut text = String::new();
                reader.read_to_string(&mut text).unwrap();
                text
            });
            monitor.finish();
            assert!(log.lock().pending.is_empty());
            if threaded {
                // The thread still has it open, so the file has no end.
                continue;
            }
            drop(monitor);
            let events = events(&read.join().unwrap());
            assert_eq!(events[0]["event"], "0");
            assert_eq!(events.last().unwrap()["event"], "4999");
        }
    }

    #[test]
    fn a_full_disk_costs_events_and_nothing_else() {
        let monitor = EventMonitor::open(Path::new("/dev/full")).unwrap();
        monitor.report(Source::Vm, "booted", &[]);
        monitor.start_thread(|| ()).unwrap();
        monitor.report(Source::Vm, "shutdown", &[]);
        monitor.finish();
        assert!(monitor.log.unwrap().lock().pending.is_empty());
    }

    #[test]
    fn a_folder_and_a_missing_folder_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_owned(), folder.path().join("a/b")] {
            assert!(EventMonitor::open(&path).is_err());
        }
    }
}
