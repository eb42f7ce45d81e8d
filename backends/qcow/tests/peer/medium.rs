//! A file in memory that remembers every write and sync, so that a power cut can be acted out at any point.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use qcow::{CreateOptions, Destination, Format, Image, OpenOptions, Source, Storage};

use super::Rng;

/// Most bytes of a medium: they are all in memory.
const LARGEST: u64 = 1 << 28;
pub const SECTOR: usize = 512;

/// What reached the storage.
#[derive(Clone)]
pub enum Event {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
    Sync,
}

#[derive(Default)]
pub struct State {
    pub bytes: Vec<u8>,
    pub log: Vec<Event>,
    /// When each of them was, among those of all files that share a clock.
    pub times: Vec<usize>,
    clock: Arc<AtomicUsize>,
    silent: bool,
}

/// The file; clones are the same file.
#[derive(Clone, Default)]
pub struct Medium(Arc<Mutex<State>>);

impl Medium {
    pub fn with(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State {
            bytes,
            ..State::default()
        })))
    }

    /// One that remembers nothing.
    pub fn silent() -> Self {
        Self(Arc::new(Mutex::new(State {
            silent: true,
            ..State::default()
        })))
    }

    /// With a new image in it.
    pub fn created(self, options: &CreateOptions) -> Self {
        qcow::create_in(&self, options).unwrap();
        self
    }

    /// One with a new image of small clusters; how small depends on the seed.
    pub fn small_clusters(seed: u64, size: u64) -> Self {
        Self::default().created(&CreateOptions {
            cluster_size: [512, 2048, 4096][seed as usize % 3],
            ..CreateOptions::new(Format::Qcow2, size)
        })
    }

    /// Opens the image in it.
    pub fn open(&self, options: &OpenOptions) -> Image {
        Image::open_storage(Box::new(self.clone()), "image", options).unwrap()
    }

    /// Another, empty file on the same clock.
    pub fn beside(&self) -> Self {
        Self(Arc::new(Mutex::new(State {
            clock: self.state().clock.clone(),
            ..State::default()
        })))
    }

    /// When the next event will be.
    pub fn now(&self) -> usize {
        self.state().clock.load(Ordering::SeqCst)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn record(&self, event: Event) {
        self.state().record(event);
    }
}

impl State {
    fn record(&mut self, event: Event) {
        let state = self;
        apply(&mut state.bytes, &event, None);
        if !state.silent {
            let time = state.clock.fetch_add(1, Ordering::SeqCst);
            state.times.push(time);
            state.log.push(event);
        }
    }
}

/// Applies an event; with `torn`, each of its sectors only by chance.
pub fn apply(image: &mut Vec<u8>, event: &Event, mut torn: Option<&mut Rng>) {
    match event {
        Event::Sync => {}
        Event::SetLen(len) => {
            if torn.as_mut().is_none_or(|rng| rng.chance(50)) {
                image.resize(*len, 0);
            }
        }
        Event::Write { offset, bytes } => {
            let mut at = 0;
            while at < bytes.len() {
                // Up to the next boundary of a sector of the medium.
                let end = (at + SECTOR - (offset + at) % SECTOR).min(bytes.len());
                if torn.as_mut().is_none_or(|rng| rng.chance(70)) {
                    if image.len() < offset + end {
                        image.resize(offset + end, 0);
                    }
                    image[offset + at..offset + end].copy_from_slice(&bytes[at..end]);
                }
                at = end;
            }
        }
    }
}

impl Storage for Medium {
    fn read(
        &self,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        let state = self.state();
        let start = (offset as usize).min(state.bytes.len());
        let end = (start + len).min(state.bytes.len());
        dst.put(at, &state.bytes[start..end]);
        dst.zero(at + end - start, len - (end - start));
        Ok(())
    }

    fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> io::Result<()> {
        let mut bytes = vec![0; len];
        src.get(at, &mut bytes);
        self.record(Event::Write {
            offset: offset as usize,
            bytes,
        });
        Ok(())
    }

    fn known_len(&self) -> u64 {
        self.state().bytes.len() as u64
    }

    fn sync(&self) -> io::Result<()> {
        self.record(Event::Sync);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state().bytes.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > LARGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.record(Event::SetLen(len as usize));
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        self.record(Event::Write {
            offset: offset as usize,
            bytes: vec![0; len as usize],
        });
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        // Not zeroes: whoever reads what was given back must notice.
        let end = self.len()?.min(offset + len);
        if offset < end {
            self.record(Event::Write {
                offset: offset as usize,
                bytes: vec![0xdd; (end - offset) as usize],
            });
        }
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset + len;
        if end > LARGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // Others make it longer meanwhile: never shorter than it is.
        let mut state = self.state();
        if (state.bytes.len() as u64) < end {
            state.record(Event::SetLen(end as usize));
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let end = self.len()?;
        Ok((offset < end).then_some((offset, end)))
    }

    fn allocated(&self) -> io::Result<u64> {
        self.len()
    }
}
