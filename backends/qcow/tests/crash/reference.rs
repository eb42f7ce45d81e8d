//! What QEMU says of every image that a power cut left: several qemu-img at a time, each image once.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::peer;

/// How many run at a time: each spends as much time waiting as working.
const AT_A_TIME: usize = 4;

/// An image to be looked at.
struct Question {
    image: Vec<u8>,
    /// It is marked dirty, so it is repaired first.
    repairs: bool,
    context: String,
}

/// qemu-img, checking images as they come.
pub(crate) struct Reference {
    questions: Option<SyncSender<Question>>,
    workers: Vec<JoinHandle<()>>,
    complaints: Arc<Mutex<Vec<String>>>,
    seen: HashSet<u64>,
    /// How many checks were asked for, counting the same image each time.
    pub(crate) asked: usize,
}

impl Reference {
    pub(crate) fn new() -> Self {
        let (questions, receiver) = sync_channel::<Question>(2 * AT_A_TIME);
        let receiver = Arc::new(Mutex::new(receiver));
        let complaints = Arc::new(Mutex::new(Vec::new()));
        let workers = (0..AT_A_TIME)
            .map(|_| {
                let (receiver, complaints) = (receiver.clone(), complaints.clone());
                std::thread::spawn(move || answer(&receiver, &complaints))
            })
            .collect();
        Self {
            questions: Some(questions),
            workers,
            complaints,
            seen: HashSet::new(),
            asked: 0,
        }
    }

    /// How many different images there were.
    pub(crate) fn different(&self) -> usize {
        self.seen.len()
    }

    /// Has an image checked. Panics if an earlier one was not sound.
    pub(crate) fn ask(&mut self, image: &[u8], repairs: bool, context: &str) {
        self.asked += 1;
        let mut hasher = DefaultHasher::new();
        (image, repairs).hash(&mut hasher);
        if !self.seen.insert(hasher.finish()) {
            return;
        }
        let question = Question {
            image: image.to_vec(),
            repairs,
            context: context.to_owned(),
        };
        let sent = self.questions.as_ref().map(|queue| queue.send(question));
        assert!(matches!(sent, Some(Ok(()))), "qemu-img is gone");
        self.complain();
    }

    fn complain(&self) {
        let complaints = self.complaints.lock().unwrap();
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    }

    /// Waits for the last results. Panics if an image was not sound.
    pub(crate) fn finish(&mut self) {
        self.questions = None;
        for worker in self.workers.drain(..) {
            worker.join().unwrap();
        }
        self.complain();
    }
}

/// A folder in memory, if there is one.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn answer(questions: &Mutex<Receiver<Question>>, complaints: &Mutex<Vec<String>>) {
    let dir = folder();
    // A check opens what the image stands on, and reads nothing of it.
    for name in [crate::workload::BASE, crate::workload::DATA] {
        std::fs::write(dir.path().join(name), []).unwrap();
    }
    let path: PathBuf = dir.path().join("crash.qcow2");
    loop {
        let question = questions.lock().unwrap().recv();
        let Ok(question) = question else { return };
        std::fs::write(&path, &question.image).unwrap();
        if let Err(said) = check(dir.path(), &path, question.repairs) {
            let complaint = format!("{}: qemu-img check: {said}", question.context);
            complaints.lock().unwrap().push(complaint);
        }
    }
}

/// qemu-img finds nothing wrong with the image but leaks; if it is dirty, and was repaired, not even these.
fn check(dir: &Path, path: &Path, repairs: bool) -> Result<(), String> {
    let path = peer::text(path);
    let mut arguments = vec!["check", "-f", "qcow2"];
    if repairs {
        // It checks again what it repaired.
        arguments.extend(["-r", "all"]);
    }
    arguments.push(path);
    let output = peer::run_in(dir, "qemu-img", &arguments);
    match output.status.code() {
        Some(0) => Ok(()),
        Some(3) if !repairs => Ok(()),
        code => {
            let said = [output.stdout, output.stderr].concat();
            Err(format!("{code:?}: {}", String::from_utf8_lossy(&said)))
        }
    }
}
