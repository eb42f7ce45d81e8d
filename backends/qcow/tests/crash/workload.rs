//! A random image, and random operations on it.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]

use std::sync::Arc;

use qcow::{
    CompressionType, CreateOptions, DataFile, Discard, ErrorKind, Format, Image, Journal,
    OpenOptions, Preallocation,
};

use crate::model::{Bitmap, DENSE, Model, Snapshot, Value, bytes_of_all};
use crate::peer::Rng;
use crate::peer::header::{add_unknown, filling};
use crate::peer::medium::{Medium, SECTOR};

/// The names of the backing file and of the external data file.
pub(crate) const BASE: &str = "base";
pub(crate) const DATA: &str = "data";

/// An image in use.
pub(crate) struct Workload {
    pub(crate) seed: u64,
    pub(crate) rng: Rng,
    /// The image and, if there is one, the external data file.
    pub(crate) files: Vec<Medium>,
    /// The journal's storage, if the workload keeps a journal where that is possible.
    pub(crate) journal: Option<Medium>,
    pub(crate) options: CreateOptions,
    pub(crate) model: Model,
    /// The backing image and what it holds.
    pub(crate) below: Option<(Arc<Image>, Vec<Value>)>,
    discard: Discard,
    cache_bytes: usize,
    /// Writes so far.
    writes: u64,
    /// Every operation is printed.
    trace: bool,
    /// The content of an unknown extension, if the image has one.
    pub(crate) unknown: Option<Vec<u8>>,
}

/// The value that the backing image holds, as the number of a write.
const BELOW: u64 = (1 << 40) - 1;

impl Workload {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let (options, sectors) = draw_options(&mut rng);
        let below = options.backing_file.is_some().then(|| {
            // Shorter or longer than the disk.
            let length = sectors as u64 * (50 + rng.below(100)) / 100;
            let disk: Vec<Value> = (0..length).map(|sector| BELOW << 20 | sector).collect();
            let medium = Medium::with(bytes_of_all(&disk));
            let image = Image::open_storage(Box::new(medium), BASE, &OpenOptions::new(Format::Raw));
            (Arc::new(image.unwrap()), disk)
        });
        let mut disk = vec![0; sectors];
        if let Some((_, content)) = &below {
            (disk.iter_mut().zip(content)).for_each(|(sector, value)| *sector = *value);
        }
        let medium = Medium::default();
        qcow::create_in(&medium, &options).unwrap();
        let unknown = draw_unknown(&mut rng, &options).map(|len| {
            add_unknown(&mut medium.state().bytes, len);
            filling(len)
        });
        let mut files = vec![medium];
        if options.data_file.is_some() {
            let data = files[0].beside();
            data.state().bytes.resize(options.size as usize, 0);
            files.push(data);
        }
        let journal = rng.chance(70).then(|| files[0].beside());
        let mut model = Model::new(disk);
        let names = [&options.backing_file, &options.data_file];
        model.names = names.map(|name| name.iter().cloned().collect());
        let workload = Self {
            seed,
            files,
            journal,
            model,
            below,
            discard: if rng.chance(80) {
                Discard::Unmap
            } else {
                Discard::Ignore
            },
            // Often small, so that the cache writes tables between flushes.
            cache_bytes: *rng.pick(&[8 << 10, 32 << 10, 1 << 20]),
            options,
            rng,
            writes: 0,
            trace: std::env::var_os("QCOW_CRASH_TRACE").is_some(),
            unknown,
        };
        workload.say(|| {
            let below = workload.below.as_ref().map(|(_, disk)| disk.len());
            format!("{:?}, {sectors} sectors above {below:?}", workload.options)
        });
        workload
    }

    /// `image`, above what is below it.
    pub(crate) fn over_backing(&self, image: Image) -> Image {
        match &self.below {
            Some((below, _)) => image.over(below.clone()),
            None => image,
        }
    }

    pub(crate) fn backing_content(&self) -> Option<Vec<u8>> {
        self.below.as_ref().map(|(_, disk)| bytes_of_all(disk))
    }

    /// Opens the image in these files, with what there is of a journal.
    pub(crate) fn open_with(
        &self,
        (files, journal): (&[Medium], Option<&Medium>),
        writable: bool,
    ) -> qcow::Result<Image> {
        let mut options = OpenOptions::new(Format::Qcow2)
            .writable(writable)
            .discard(self.discard)
            .cache_bytes(self.cache_bytes);
        if let Some(data) = files.get(1) {
            options = options.data_file(DataFile::Use(Arc::new(data.clone())));
        }
        if let Some(journal) = journal {
            options = options.journal(Journal::Use(Arc::new(journal.clone())));
        }
        let image = Image::open_storage(Box::new(files[0].clone()), "crash", &options)?;
        Ok(self.over_backing(image))
    }

    /// Opens the image in files without a journal.
    pub(crate) fn open(&self, files: &[Medium], writable: bool) -> qcow::Result<Image> {
        self.open_with((files, None), writable)
    }

    /// All files: image, external data file, journal.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Medium> {
        self.files.iter().chain(&self.journal)
    }

    /// Opens the image for use.
    pub(crate) fn begin(&self) -> Image {
        self.open_with((&self.files, self.journal.as_ref()), true)
            .unwrap()
    }

    /// Does one operation, and adds to the model what may be on the medium after it. Returns whether all of it is
    /// durable.
    pub(crate) fn step(&mut self, image: &mut Option<Image>) -> bool {
        if self.rng.chance(4) {
            self.say(|| "close and open".to_owned());
            image.take().unwrap().close().unwrap();
            *image = Some(self.begin());
            return true;
        }
        let image = image.as_ref().unwrap();
        match self.rng.below(100) {
            0..36 => self.write(image),
            36..40 => self.write_at_once(image),
            40..49 => self.zero(image),
            49..57 => self.discard(image),
            57..63 if self.options.data_file.is_none() => self.compressed(image),
            63..75 => {
                self.say(|| "flush".to_owned());
                image.flush().unwrap();
                return true;
            }
            75..79 => self.resize(image),
            79..87 if self.options.data_file.is_none() => self.snapshot(image),
            87..93 if self.options.version >= 3 => self.bitmap(image),
            _ => self.amend(image),
        }
        false
    }

    pub(crate) fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("seed {}: {}", self.seed, what());
        }
    }

    /// The operation is over.
    pub(crate) fn settle(&mut self, durable: bool) {
        self.model.settle();
        if durable {
            self.model.flushed();
        }
    }

    fn range(&mut self) -> (usize, usize) {
        let sectors = self.model.now.len();
        let start = self.rng.below(sectors as u64) as usize;
        let most = if self.rng.chance(20) { 200 } else { 12 };
        let len = self.rng.below((sectors - start).min(most) as u64) as usize + 1;
        (start, start + len)
    }

    /// Values for a new write.
    fn values(&mut self, start: usize, end: usize, dense: bool) -> Vec<Value> {
        self.writes += 1;
        let kind = if dense { DENSE } else { 0 };
        (start..end)
            .map(|sector| kind | self.writes << 20 | sector as u64)
            .collect()
    }

    pub(crate) fn note(&mut self, start: usize, values: &[Value]) {
        (start..)
            .zip(values)
            .for_each(|(sector, value)| self.model.set(sector, *value));
    }

    fn write(&mut self, image: &Image) {
        let (start, end) = self.range();
        let dense = self.rng.chance(50);
        let values = self.values(start, end, dense);
        self.say(|| format!("write {start}..{end} dense {dense}"));
        self.note(start, &values);
        image
            .write_at((start * SECTOR) as u64, &bytes_of_all(&values))
            .unwrap();
    }

    /// Several threads write and flush at once.
    fn write_at_once(&mut self, image: &Image) {
        let (start, end) = self.range();
        let (first, second) = (start + (end - start) / 3, start + (end - start) * 2 / 3);
        let dense = self.rng.chance(50);
        let values = self.values(start, end, dense);
        self.say(|| format!("write {start}..{first}..{second}..{end} at once"));
        self.note(start, &values);
        let write = |from: usize, to: usize| {
            if from < to {
                let bytes = bytes_of_all(&values[from - start..to - start]);
                image.write_at((from * SECTOR) as u64, &bytes).unwrap();
            }
        };
        std::thread::scope(|scope| {
            for (from, to) in [(start, first), (first, second), (second, end)] {
                scope.spawn(move || write(from, to));
            }
            scope.spawn(|| image.flush().unwrap());
        });
    }

    fn zero(&mut self, image: &Image) {
        let (start, end) = self.range();
        self.note(start, &vec![0; end - start]);
        let (offset, len) = ((start * SECTOR) as u64, ((end - start) * SECTOR) as u64);
        let unmap = self.rng.chance(60);
        self.say(|| format!("zero {start}..{end}, unmap {unmap}"));
        image.write_zeroes(offset, len, unmap).unwrap();
    }

    fn discard(&mut self, image: &Image) {
        let (start, end) = self.range();
        let (offset, len) = ((start * SECTOR) as u64, ((end - start) * SECTOR) as u64);
        (start..end).for_each(|sector| self.model.permit(sector, 0));
        self.say(|| format!("discard {start}..{end}"));
        image.discard(offset, len).unwrap();
        let mut bytes = vec![0; len as usize];
        image.read_at(offset, &mut bytes).unwrap();
        for (sector, bytes) in (start..end).zip(bytes.chunks(SECTOR)) {
            let old = self.model.now[sector];
            let value = crate::model::value_of(bytes).unwrap();
            assert!(
                value == 0 || value == old,
                "seed {}: a discard made something up",
                self.seed
            );
            self.model.now[sector] = value;
        }
    }

    fn compressed(&mut self, image: &Image) {
        let unit = self.options.cluster_size as usize / SECTOR;
        let (start, end) = self.range();
        let start = start - start % unit;
        let end = end.next_multiple_of(unit).min(self.model.now.len());
        let dense = self.rng.chance(20);
        self.say(|| format!("write_compressed {start}..{end} dense {dense}"));
        let values = self.values(start, end, dense);
        self.note(start, &values);
        image
            .write_compressed((start * SECTOR) as u64, &bytes_of_all(&values))
            .unwrap();
    }

    fn resize(&mut self, image: &Image) {
        let before = self.model.now.clone();
        let sectors = before.len() as u64;
        let sectors = (self.rng.below(sectors * 3 / 2) as usize + 8).min(8192);
        if let Some((_, below)) = self.below.as_ref().filter(|_| self.options.version < 3) {
            // Version 2 cannot say that what is about to be cut off reads as zeroes.
            for (sector, value) in below.iter().enumerate().take(before.len()).skip(sectors) {
                self.model.permit(sector, *value);
            }
        }
        self.model.resize(sectors);
        let grows = sectors as u64 * SECTOR as u64 > image.virtual_size();
        let preallocation = match grows && self.below.is_none() && self.rng.chance(20) {
            true => *self.rng.pick(&[
                Preallocation::Metadata,
                Preallocation::Falloc,
                Preallocation::Full,
            ]),
            false => Preallocation::Off,
        };
        self.say(|| format!("resize to {sectors}, {preallocation:?}"));
        match image.resize((sectors * SECTOR) as u64, preallocation) {
            Ok(()) => {}
            // Version 2 does not record the size of a snapshot's disk.
            Err(error) => {
                assert_eq!(
                    error.kind(),
                    ErrorKind::Unsupported,
                    "seed {}: {error}",
                    self.seed
                );
                self.replace_disk(&before);
            }
        }
    }

    /// The disk becomes another one, as a whole.
    fn replace_disk(&mut self, disk: &[Value]) {
        self.model.resize(disk.len());
        self.note(0, disk);
    }

    fn snapshot(&mut self, image: &Image) {
        let names: Vec<String> = self.model.snapshots.keys().cloned().collect();
        match self.rng.below(10) {
            0..5 if names.len() < 4 => {
                self.writes += 1;
                let name = format!("s{}", self.writes);
                self.model.fresh = Some(name.clone());
                self.say(|| format!("create snapshot {name}"));
                match image.snapshot_create(&name) {
                    Ok(()) => {
                        self.model
                            .snapshots
                            .insert(name, Snapshot::new(self.model.now.clone()));
                    }
                    // Refcounts that are too narrow.
                    Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}"),
                }
            }
            5..7 if !names.is_empty() => {
                let name = self.rng.pick(&names).clone();
                let (old, before) = (
                    self.model.snapshots[&name].values.clone(),
                    self.model.now.clone(),
                );
                self.replace_disk(&old);
                self.say(|| format!("apply snapshot {name}"));
                if let Err(error) = image.snapshot_apply(&name) {
                    // Bitmaps do not follow a snapshot of another size; refcounts may be too narrow.
                    assert!(
                        matches!(
                            error.kind(),
                            ErrorKind::Unsupported | ErrorKind::InvalidInput
                        ),
                        "seed {}: {error}",
                        self.seed
                    );
                    self.replace_disk(&before);
                }
            }
            7.. if !names.is_empty() => {
                let name = self.rng.pick(&names).clone();
                self.model.snapshots.remove(&name);
                self.say(|| format!("delete snapshot {name}"));
                image.snapshot_delete(&name).unwrap();
            }
            _ => {}
        }
    }

    fn bitmap(&mut self, image: &Image) {
        let name = format!("b{}", self.rng.below(3));
        let (now, roll, enable) = (
            self.model.now.clone(),
            self.rng.below(10),
            self.rng.chance(60),
        );
        self.say(|| format!("bitmap {name}: {roll} {enable}"));
        let Some(bitmap) = self.model.bitmaps.get_mut(&name) else {
            let since = vec![now];
            let enabled = enable;
            self.model
                .bitmaps
                .insert(name.clone(), Bitmap { enabled, since });
            return image.bitmap_add(&name, Some(512), enabled).unwrap();
        };
        match roll {
            0..3 => {
                self.model.bitmaps.remove(&name);
                image.bitmap_remove(&name).unwrap();
            }
            3..6 => {
                bitmap.since.push(now);
                image.bitmap_clear(&name).unwrap();
            }
            6 => {
                // What is said of more than has changed.
                let len = self.options.size / 2;
                image
                    .bitmap_merge(&name, [(0, len.min(image.virtual_size()))])
                    .unwrap();
            }
            _ => {
                if enable && !bitmap.enabled {
                    // What happened meanwhile is in no bitmap.
                    bitmap.since = vec![now];
                }
                bitmap.enabled = enable;
                image.bitmap_enable(&name, enable).unwrap();
            }
        }
    }
}

/// What the image is like, and how many sectors its disk has.
fn draw_options(rng: &mut Rng) -> (CreateOptions, usize) {
    let drawn = if rng.chance(80) { 3 } else { 2 };
    let version = crate::only_version().unwrap_or(drawn);
    let extended_l2 = version == 3 && rng.chance(15);
    let cluster_size: u64 = match extended_l2 {
        true => *rng.pick(&[16 << 10, 32 << 10, 64 << 10]),
        false => *rng.pick(&[
            512,
            512,
            512,
            1024,
            2048,
            4096,
            4096,
            4096,
            8192,
            16 << 10,
            64 << 10,
        ]),
    };
    let clusters = cluster_size / SECTOR as u64;
    let sectors = if clusters >= 128 {
        clusters * (4 + rng.below(12)) + rng.below(clusters)
    } else {
        100 + rng.below(600)
    };
    let mut options = CreateOptions {
        version,
        cluster_size,
        extended_l2,
        ..CreateOptions::new(Format::Qcow2, sectors * SECTOR as u64)
    };
    if version == 3 {
        options.lazy_refcounts = rng.chance(20);
        options.refcount_bits = *rng.pick(&[1, 2, 4, 8, 16, 16, 16, 32, 64]);
        options.compression_type = *rng.pick(&[CompressionType::Zlib, CompressionType::Zstd]);
    }
    if rng.chance(35) {
        options.backing_file = Some(BASE.into());
        options.backing_format = Some(Format::Raw);
    }
    if version == 3 && rng.chance(20) {
        options.data_file = Some(DATA.into());
        options.data_file_raw = options.backing_file.is_none() && rng.chance(50);
    }
    (options, sectors as usize)
}

/// The length of an unknown extension. The first cluster must have room for two headers with it.
fn draw_unknown(rng: &mut Rng, options: &CreateOptions) -> Option<usize> {
    let most = options.cluster_size.saturating_sub(SECTOR as u64) / 4;
    (most >= 300 && rng.chance(30)).then(|| rng.below(most.min(1500)) as usize)
}
