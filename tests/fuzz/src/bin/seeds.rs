//! Writes the seed corpus: for each target, sound images with every feature, small enough for a fuzzer to change what matters.
//!
//! `seeds FOLDER` makes `FOLDER/TARGET/NAME` for each.

// cargo-fuzz builds this program, too, with the same instrumentation, which calls libFuzzer.
use libfuzzer_sys as _;

use std::path::Path;

use bulkhead_fuzz::memory::Memory;
use bulkhead_fuzz::{open, program};
use qcow::{CompressionType, CreateOptions, Format, OpenOptions};

/// A name and what it is.
type Seed = (String, Vec<u8>);

const WHOLE: &[&str] = &["image_open", "image_check", "image_repair"];
const PROGRAMS: &[&str] = &["image_read", "image_write"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).ok_or("usage: seeds FOLDER")?;
    let folder = Path::new(&folder);
    for (name, image) in images()? {
        for target in WHOLE {
            write(folder, target, &name, &image)?;
        }
        let input = program::join(&steps(), &image);
        for target in PROGRAMS {
            write(folder, target, &name, &input)?;
        }
    }
    Ok(())
}

fn write(folder: &Path, target: &str, name: &str, content: &[u8]) -> std::io::Result<()> {
    let folder = folder.join(target);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(name), content)
}

fn images() -> qcow::Result<Vec<Seed>> {
    let mut seeds = Vec::new();
    for cluster_size in [512, 4096] {
        for version in [2, 3] {
            for extended_l2 in [false, true] {
                for refcount_bits in [1, 16, 64] {
                    let options = CreateOptions {
                        version,
                        cluster_size: if extended_l2 { 16384 } else { cluster_size },
                        extended_l2,
                        refcount_bits,
                        compression_type: match refcount_bits {
                            64 => CompressionType::Zstd,
                            _ => CompressionType::Zlib,
                        },
                        lazy_refcounts: version == 3 && refcount_bits == 16,
                        ..CreateOptions::new(Format::Qcow2, 256 << 10)
                    };
                    let only_version_3 = extended_l2 || refcount_bits != 16;
                    if version == 2 && only_version_3 {
                        continue;
                    }
                    let name = format!("v{version}-{cluster_size}-{extended_l2}-{refcount_bits}");
                    seeds.push((name, image(&options)?));
                }
            }
        }
    }
    Ok(seeds)
}

/// An image with data, zeroes, compressed clusters, and a snapshot where refcounts allow one.
fn image(options: &CreateOptions) -> qcow::Result<Vec<u8>> {
    let memory = Memory::default();
    qcow::create_in(&memory, options)?;
    let image = open(&memory, OpenOptions::new(Format::Qcow2).writable(true))?;
    image.write_at(0, &[0x5a; 3000])?;
    image.write_at(100_000, &[0xa5; 5000])?;
    if options.refcount_bits > 1 {
        image.snapshot_create("s")?;
    }
    image.write_zeroes(4096, 20_000, true)?;
    image.write_at(1000, &[0x77; 100])?;
    let cluster = vec![0x11; options.cluster_size as usize];
    image.write_compressed(8 * options.cluster_size, &cluster)?;
    image.close()?;
    Ok(memory.bytes())
}

/// One step of every kind.
fn steps() -> Vec<[u8; 8]> {
    (0..10)
        .map(|kind| [kind, 0x33, kind * 16, kind, 0, 0, 0, 2])
        .collect()
}
