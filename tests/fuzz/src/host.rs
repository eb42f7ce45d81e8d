//! What is around an image: its own file, an external data file, and what lies below it.

use std::sync::Arc;

use qcow::{CheckResult, DataFile, Format, Image, OpenOptions, Repair, Storage};

use crate::for_check;
use crate::input::Input;
use crate::kinds::overlap;
use crate::memory::Memory;
use crate::places::word;
use crate::sound;

/// Bytes of an external data file that holds something.
static DATA: [u8; 40_000] = [0x99; 40_000];

/// The files of an image. No other one is opened, whatever the image names.
pub struct Host {
    /// The image's own file.
    pub file: Memory,
    data: Memory,
    below: Arc<Image>,
    windows: Vec<(u64, Option<u64>)>,
}

impl Host {
    /// The files an input stands for. Layers that cannot be opened are left out.
    pub fn new(input: &Input<'_>) -> Self {
        let mut below = sound::below();
        for layer in input.below.iter().rev() {
            let host = Self {
                file: Memory::new(layer),
                data: Memory::default(),
                below: Arc::clone(&below),
                windows: Vec::new(),
            };
            if let Ok(image) = host.open(OpenOptions::new(Format::Qcow2)) {
                below = Arc::new(image);
            }
        }
        Self {
            file: Memory::new(&input.image),
            data: Memory::new(if input.has_data { &DATA } else { &[] }),
            below,
            windows: Vec::new(),
        }
    }

    /// The image lies in a part of its file, so many bytes behind the start, and so many follow it.
    #[must_use]
    pub fn within(mut self, before: usize, after: usize, sized: bool) -> Self {
        let image = self.file.bytes();
        let mut bytes = vec![0x77; before];
        bytes.extend(&image);
        bytes.resize(bytes.len() + after, 0x77);
        self.file = Memory::new(&bytes);
        self.windows
            .push((before as u64, sized.then_some(image.len() as u64)));
        self
    }

    /// The same files, in memory of their own. What is below is never written.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self {
            file: self.file.copy(),
            data: self.data.copy(),
            below: Arc::clone(&self.below),
            windows: self.windows.clone(),
        }
    }

    /// Opens the image with a data file if it names one, and what is below if it names a backing file.
    pub fn open(&self, options: OpenOptions) -> qcow::Result<Image> {
        let data = DataFile::Use(Arc::new(self.data.clone()));
        let image = self.open_alone(options.data_file(data))?;
        Ok(
            match self.names_backing_file() && image.format() == Format::Qcow2 {
                true => image.over(Arc::clone(&self.below)),
                false => image,
            },
        )
    }

    /// Opens the image and nothing that it names.
    pub fn open_alone(&self, options: OpenOptions) -> qcow::Result<Image> {
        // Small, so that tables are evicted even from the small images a fuzzer makes.
        let mut options = options.cache_bytes(16 << 10);
        for (offset, size) in &self.windows {
            options = options.window(*offset, *size);
        }
        Image::open_storage(Box::new(self.file.clone()), "image.qcow2", &options)
    }

    /// A file of the image by the number it has in plans, if it is one of its own and offsets in it are offsets there.
    pub fn file(&self, number: usize) -> Option<&Memory> {
        match number {
            _ if !self.windows.is_empty() => None,
            0 => Some(&self.file),
            1 if self.has_data_file() => Some(&self.data),
            _ => None,
        }
    }

    /// The file that holds the image's data, if offsets in it are offsets there.
    pub fn data(&self) -> Option<&Memory> {
        self.file(usize::from(self.has_data_file()))
    }

    fn has_data_file(&self) -> bool {
        const EXTERNAL_DATA: u64 = 4;
        let header = self.header();
        word(&header, 4, 4) > 2 && word(&header, 72, 8) & EXTERNAL_DATA != 0
    }

    fn names_backing_file(&self) -> bool {
        let header = self.header();
        word(&header, 8, 8) != 0 && word(&header, 16, 4) != 0
    }

    /// The beginning of the image: facts cannot be had of all that can be read.
    fn header(&self) -> [u8; 80] {
        let mut header = [0; 80];
        let start = self.windows.first().map_or(0, |(offset, _)| *offset);
        let read = self.file.read(start, &mut &mut header[..], 0, 80);
        read.expect("memory");
        header
    }

    /// Whether some cluster has two uses, or the file has become too long to tell.
    pub fn overlaps(&self) -> bool {
        const LONGEST: u64 = 16 << 20;
        let len = self.file.len().unwrap_or(u64::MAX);
        len > LONGEST || overlap(&self.file.bytes())
    }

    /// Whether the image has been marked: somebody was about to write and found damage.
    pub fn is_marked_corrupt(&self) -> bool {
        const CORRUPT: u64 = 2;
        let header = self.header();
        word(&header, 4, 4) >= 3 && word(&header, 72, 8) & CORRUPT != 0
    }

    /// Whether a check finds damage; `None` when it cannot be made.
    pub fn damaged(&self) -> Option<bool> {
        Some(!self.check()?.is_sound())
    }

    /// What a check finds; `None` when it cannot be made.
    pub fn check(&self) -> Option<CheckResult> {
        self.open_alone(for_check()).ok()?.check(Repair::None).ok()
    }
}
