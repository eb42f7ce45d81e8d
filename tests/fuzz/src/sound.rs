//! Sound images with every feature of the format, small enough for thousands of them to be tried in a second.

use std::sync::{Arc, OnceLock};

use qcow::{
    CompressionType, CreateOptions, DataFile, Format, Image, OpenOptions, Preallocation, Result,
};

use crate::memory::Memory;
use crate::places;

/// An image, and where its metadata is.
#[derive(Debug)]
pub struct Sound {
    /// What it has.
    pub name: String,
    /// The file.
    pub bytes: Vec<u8>,
    /// Offsets of metadata.
    pub places: Vec<usize>,
}

impl Sound {
    fn new(name: &str, bytes: Vec<u8>) -> Self {
        Self {
            places: places::of(&bytes),
            bytes,
            name: name.to_owned(),
        }
    }
}

/// What is below an image that names a backing file: shorter than most, and nowhere zero.
pub fn below() -> Arc<Image> {
    static BELOW: OnceLock<Arc<Image>> = OnceLock::new();
    let image = BELOW.get_or_init(|| {
        let memory = Memory::new(&[0x42; 150_000]);
        let options = OpenOptions::new(Format::Raw);
        let image = Image::open_storage(Box::new(memory), "below", &options);
        Arc::new(image.expect("a raw image"))
    });
    Arc::clone(image)
}

/// All of them, made once.
pub fn images() -> &'static [Sound] {
    static IMAGES: OnceLock<Vec<Sound>> = OnceLock::new();
    IMAGES.get_or_init(|| make().expect("sound images"))
}

/// What is done to an image.
#[derive(Clone, Copy)]
enum Content {
    Empty,
    Data,
    Snapshots,
    Bitmaps,
    Everything,
    Preallocated,
    /// Everything, and the power fails.
    LeftOpen,
}

fn make() -> Result<Vec<Sound>> {
    use Content::{Bitmaps, Data, Empty, Everything, LeftOpen, Preallocated, Snapshots};
    let mut images = Vec::new();
    for (name, options) in layouts() {
        let contents: &[(&str, Content)] = match (options.version, options.refcount_bits) {
            _ if options.size > 1 << 30 => &[("empty", Empty), ("data", Data)],
            _ if options.data_file.is_some() => &[
                ("data", Data),
                ("bitmaps", Bitmaps),
                ("preallocated", Preallocated),
            ],
            (_, 1) => &[("data", Data), ("bitmaps", Bitmaps)],
            (2, _) => &[("empty", Empty), ("data", Data), ("snapshots", Snapshots)],
            _ => &[
                ("snapshots", Snapshots),
                ("bitmaps", Bitmaps),
                ("everything", Everything),
                ("preallocated", Preallocated),
                ("left-open", LeftOpen),
            ],
        };
        for (what, content) in contents {
            let bytes = image(&options, *content)?;
            images.push(Sound::new(&format!("{name}-{what}"), bytes));
        }
    }
    let marked: Vec<Sound> = images
        .iter()
        .filter(|sound| sound.name.starts_with("plain-") || sound.name.starts_with("large-"))
        .filter_map(with_unknown_extension)
        .collect();
    images.extend(marked);
    images.push(encrypted_by_aes()?);
    images.push(encrypted_by_luks(&images[0])?);
    Ok(images)
}

/// An image that can only be looked at.
fn encrypted_by_aes() -> Result<Sound> {
    let memory = Memory::default();
    let options = CreateOptions {
        cluster_size: 512,
        aes: true,
        ..CreateOptions::new(Format::Qcow2, 200 << 10)
    };
    qcow::create_in(&memory, &options)?;
    Ok(Sound::new("encrypted-aes", memory.bytes()))
}

/// As many bytes as a LUKS header takes.
const LUKS_LEN: usize = 592;

/// An image that says it is encrypted, with a LUKS header at its end.
fn encrypted_by_luks(plain: &Sound) -> Result<Sound> {
    let mut bytes = plain.bytes.clone();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let at = bytes.len();
    let mut header = vec![0; LUKS_LEN.next_multiple_of(512)];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, b"LUKS\xba\xbe\0\x01");
    put(8, b"aes");
    put(40, b"xts-plain64");
    put(72, b"sha256");
    put(104, &2068u32.to_be_bytes());
    put(108, &64u32.to_be_bytes());
    put(164, &150_000u32.to_be_bytes());
    put(168, b"f3a2b1c0-0000-4000-8000-0123456789ab");
    for slot in 0..8 {
        let state: u32 = if slot == 0 { 0x00ac_71f3 } else { 0x0000_dead };
        put(208 + slot * 48, &state.to_be_bytes());
        put(212 + slot * 48, &150_000u32.to_be_bytes());
        put(248 + slot * 48, &(8 + 504 * slot as u32).to_be_bytes());
        put(252 + slot * 48, &4000u32.to_be_bytes());
    }
    bytes.extend(header);
    bytes[32..36].copy_from_slice(&2u32.to_be_bytes());
    let mut extension = 0x0537_be77_u32.to_be_bytes().to_vec();
    extension.extend(16u32.to_be_bytes());
    extension.extend((at as u64).to_be_bytes());
    extension.extend((LUKS_LEN as u64).to_be_bytes());
    // In front of the others, which follow where the header ends.
    let start = places::word(&bytes, 100, 4) as usize;
    bytes.copy_within(start..512 - extension.len(), start + extension.len());
    bytes[start..start + extension.len()].copy_from_slice(&extension);
    let mut sound = Sound::new("encrypted-luks", bytes);
    sound.places.extend((at..at + LUKS_LEN).step_by(4));
    Ok(sound)
}

/// Ways to lay an image out.
fn layouts() -> Vec<(&'static str, CreateOptions)> {
    let plain = CreateOptions {
        cluster_size: 512,
        ..CreateOptions::new(Format::Qcow2, 200 << 10)
    };
    let with = |change: &dyn Fn(&mut CreateOptions)| {
        let mut options = plain.clone();
        change(&mut options);
        options
    };
    let extended = |options: &mut CreateOptions| {
        options.cluster_size = 16384;
        options.extended_l2 = true;
    };
    let backed = |options: &mut CreateOptions| {
        options.backing_file = Some("below".into());
        options.backing_format = Some(Format::Raw);
    };
    let elsewhere = |raw: bool| {
        move |options: &mut CreateOptions| {
            options.data_file = Some("data".into());
            options.data_file_raw = raw;
        }
    };
    let zstd = CompressionType::Zstd;
    vec![
        ("plain", plain.clone()),
        ("v2", with(&|options| options.version = 2)),
        (
            "v2-backed",
            with(&|options| {
                options.version = 2;
                backed(options);
            }),
        ),
        ("refcounts-1", with(&|options| options.refcount_bits = 1)),
        ("refcounts-4", with(&|options| options.refcount_bits = 4)),
        (
            "refcounts-8-zstd",
            with(&|options| {
                options.refcount_bits = 8;
                options.compression_type = zstd;
            }),
        ),
        ("refcounts-64", with(&|options| options.refcount_bits = 64)),
        ("lazy", with(&|options| options.lazy_refcounts = true)),
        ("backed", with(&backed)),
        ("extended", with(&extended)),
        (
            "extended-backed-zstd",
            with(&|options| {
                extended(options);
                backed(options);
                options.compression_type = zstd;
            }),
        ),
        ("elsewhere", with(&elsewhere(false))),
        ("elsewhere-raw", with(&elsewhere(true))),
        (
            "elsewhere-extended",
            with(&|options| {
                extended(options);
                elsewhere(false)(options);
            }),
        ),
        (
            "large-clusters",
            with(&|options| options.cluster_size = 4096),
        ),
        (
            "large-disk",
            with(&|options| {
                options.cluster_size = 65536;
                options.size = 1 << 40;
            }),
        ),
        (
            "backed-qcow2",
            with(&|options| {
                backed(options);
                options.backing_format = Some(Format::Qcow2);
            }),
        ),
    ]
}

fn image(options: &CreateOptions, content: Content) -> Result<Vec<u8>> {
    let memory = Memory::default();
    let first = match content {
        Content::Preallocated => CreateOptions {
            size: 512,
            backing_file: None,
            backing_format: None,
            ..options.clone()
        },
        _ => options.clone(),
    };
    qcow::create_in(&memory, &first)?;
    let mut how = OpenOptions::new(Format::Qcow2).writable(true);
    how = how.data_file(DataFile::Use(Arc::new(Memory::default())));
    let mut image = Image::open_storage(Box::new(memory.clone()), "image.qcow2", &how)?;
    if first.backing_file.is_some() {
        image = image.over(below());
    }
    let compressed = options.data_file.is_none();
    match content {
        Content::Empty => {}
        Content::Data => data(&image, compressed, 0)?,
        Content::Snapshots => snapshots(&image)?,
        Content::Bitmaps => bitmaps(&image)?,
        Content::Everything | Content::LeftOpen => {
            bitmaps(&image)?;
            snapshots(&image)?;
        }
        Content::Preallocated => image.resize(options.size, Preallocation::Metadata)?,
    }
    if matches!(content, Content::LeftOpen) {
        image.write_at(60_000, &[0x3c; 700])?;
        image.flush()?;
        image.write_at(70_000, &[0x3c; 3000])?;
        return Ok(memory.bytes());
    }
    image.close()?;
    Ok(memory.bytes())
}

/// Data, zeroes and compressed clusters.
fn data(image: &Image, compressed: bool, shift: u64) -> Result<()> {
    let cluster = image.cluster_size().unwrap_or(512);
    image.write_at(shift, &[0x5a; 3000])?;
    image.write_at(100_000 + shift, &[0xa5; 5000])?;
    image.write_zeroes(4096 + shift, 9000, true)?;
    image.discard(101_000, 2 * cluster)?;
    image.write_at(1000, &[0x77; 100])?;
    if compressed {
        let mut bytes: Vec<u8> = (0..cluster).map(|at| (at / 7) as u8).collect();
        for index in 8..11 {
            bytes[0] = index as u8;
            image.write_compressed(index * cluster + shift / cluster * cluster, &bytes)?;
        }
    }
    Ok(())
}

fn snapshots(image: &Image) -> Result<()> {
    data(image, true, 0)?;
    image.snapshot_create("first")?;
    data(image, true, 2048)?;
    let size = image.virtual_size();
    image.resize(size + 30 * 512, Preallocation::Off)?;
    image.snapshot_create("second")?;
    data(image, true, 16384)
}

fn bitmaps(image: &Image) -> Result<()> {
    image.bitmap_add("all", Some(512), true)?;
    image.bitmap_add("some", Some(4096), true)?;
    data(image, false, 0)?;
    image.bitmap_enable("some", false)?;
    image.write_at(150_000, &[1; 600])
}

/// The same image with a header extension that nobody knows, if there is room for one.
fn with_unknown_extension(sound: &Sound) -> Option<Sound> {
    let mut bytes = sound.bytes.clone();
    let mut at = places::word(&bytes, 100, 4) as usize;
    while places::word(&bytes, at, 4) != 0 {
        at += 8 + (places::word(&bytes, at + 4, 4) as usize).next_multiple_of(8);
    }
    let extension = *b"\x12\x34\x56\x78\0\0\0\x05hello\0\0\0\0\0\0\0\0\0\0\0";
    let room = bytes.get_mut(at..at + extension.len())?;
    if at + extension.len() > 512 || room.iter().any(|byte| *byte != 0) {
        return None;
    }
    room.copy_from_slice(&extension);
    Some(Sound::new(&format!("{}-extension", sound.name), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::for_check;
    use crate::host::Host;
    use crate::input::Input;
    use qcow::Repair;

    #[test]
    fn they_are_sound_and_can_be_read() {
        for sound in images() {
            let bytes = crate::input::join(&[], &sound.bytes);
            let host = Host::new(&Input::of(&bytes));
            if sound.name.starts_with("encrypted") {
                let options = OpenOptions::new(Format::Qcow2).for_info(true);
                let facts = host.open_alone(options).unwrap().info().unwrap();
                assert!(facts.qcow2.unwrap().encryption.is_some(), "{}", sound.name);
                continue;
            }
            let checked = host.open_alone(for_check()).unwrap().check(Repair::None);
            let checked = checked.unwrap();
            let left_open = sound.name.contains("left-open");
            assert!(
                left_open || checked.corruptions + checked.check_errors + checked.leaks == 0,
                "{}: {checked:?}",
                sound.name
            );
            assert!(!crate::kinds::overlap(&sound.bytes), "{}", sound.name);
            let image = host.open(OpenOptions::new(Format::Qcow2)).unwrap();
            let mut disk = vec![0; image.virtual_size().min(1 << 20) as usize];
            image.read_at(0, &mut disk).unwrap();
            assert!(
                sound.places.len() > 100,
                "{}: {:?}",
                sound.name,
                sound.places
            );
        }
    }
}
