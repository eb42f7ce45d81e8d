//! Codecs of compressed clusters.

use std::cell::RefCell;

use libdeflater::{CompressionLvl, Compressor, Decompressor};
use zstd::zstd_safe;

use crate::error::{Error, Result};
use crate::options::CompressionType;

/// Decompresses a cluster into `out`, which it must fill. What follows the compressed data in `input` is ignored.
pub(crate) fn decompress(kind: CompressionType, input: &[u8], out: &mut [u8]) -> Result<()> {
    match kind {
        CompressionType::Zlib => inflate(input, out),
        CompressionType::Zstd => unzstd(input, out),
    }
}

// Setting a codec up takes as long as a small cluster: each thread keeps its own.
thread_local! {
    static DEFLATE: RefCell<Compressor> = RefCell::new(Compressor::new(deflate_level()));
    static INFLATE: RefCell<Decompressor> = RefCell::new(Decompressor::new());
    static ZSTD: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    static INPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static UNZSTD: RefCell<zstd_safe::DCtx<'static>> = RefCell::new(zstd_safe::DCtx::create());
}

/// Lends `work` the memory of this thread for what is to be decompressed: `len` bytes of unspecified content.
pub(crate) fn with_input<T>(len: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    INPUT.with_borrow_mut(|input| {
        if input.len() < len {
            input.resize(len, 0);
        }
        work(input.get_mut(..len).unwrap_or_default())
    })
}

/// libdeflate's fastest level: with the whole window it packs about as tightly as QEMU does with a window of 4 KiB.
fn deflate_level() -> CompressionLvl {
    // Level 0 would not compress at all.
    CompressionLvl::new(1).unwrap_or_default()
}

fn inflate(input: &[u8], out: &mut [u8]) -> Result<()> {
    let done = INFLATE.with_borrow_mut(|codec| codec.deflate_decompress(input, out));
    match done {
        Ok(len) if len == out.len() => Ok(()),
        Ok(_) => Err(Error::corrupt("a compressed cluster is too short")),
        Err(error) => Err(Error::corrupt(format!(
            "a compressed cluster cannot be decompressed: {error}"
        ))),
    }
}

fn unzstd(input: &[u8], out: &mut [u8]) -> Result<()> {
    let failed = |code| {
        Error::corrupt(format!(
            "a compressed cluster cannot be decompressed: {}",
            zstd_safe::get_error_name(code)
        ))
    };
    UNZSTD.with_borrow_mut(|context| {
        // What an earlier cluster left behind, if it was damaged, must not reach this one.
        context
            .reset(zstd_safe::ResetDirective::SessionOnly)
            .map_err(failed)?;
        let mut input = zstd_safe::InBuffer::around(input);
        let total = out.len();
        let mut output = zstd_safe::OutBuffer::around(out);
        // A cluster may be more than one frame.
        while output.pos() < total {
            let before = (input.pos(), output.pos());
            context
                .decompress_stream(&mut output, &mut input)
                .map_err(failed)?;
            if (input.pos(), output.pos()) == before {
                return Err(Error::corrupt("a compressed cluster is too short"));
            }
        }
        Ok(())
    })
}

fn zstd_compress(input: &[u8], out: &mut [u8]) -> Option<usize> {
    ZSTD.with_borrow_mut(|kept| {
        if kept.is_none() {
            *kept = zstd::bulk::Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL).ok();
        }
        kept.as_mut()?.compress_to_buffer(input, out).ok()
    })
}

/// Compresses a cluster; `None` if that makes it no smaller.
pub(crate) fn compress(kind: CompressionType, input: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut out = vec![0; input.len().saturating_sub(1)];
    let len = match kind {
        CompressionType::Zlib => {
            // QEMU inflates a cluster by one call into one buffer: distances up to all of deflate's window are then
            // within the output, whatever the window it names.
            DEFLATE.with_borrow_mut(|codec| codec.deflate_compress(input, &mut out).ok())
        }
        CompressionType::Zstd => zstd_compress(input, &mut out),
    };
    Ok(len.map(|len| {
        out.truncate(len);
        out
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_codecs_give_back_what_they_got_and_ignore_what_follows() {
        let cluster: Vec<u8> = (0..65536u32).map(|i| (i / 100) as u8).collect();
        for kind in [CompressionType::Zlib, CompressionType::Zstd] {
            let mut packed = compress(kind, &cluster).unwrap().unwrap();
            assert!(packed.len() < cluster.len() / 4);
            packed.extend_from_slice(&[0xaa; 300]);
            let mut out = vec![0; cluster.len()];
            decompress(kind, &packed, &mut out).unwrap();
            assert_eq!(out, cluster);
            assert!(decompress(kind, &packed[..20], &mut out).is_err());
        }
    }

    #[test]
    fn what_does_not_shrink_is_not_compressed() {
        let mut state = 1u64;
        let noise: Vec<u8> = (0..65536)
            .map(|_| {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect();
        for kind in [CompressionType::Zlib, CompressionType::Zstd] {
            assert_eq!(compress(kind, &noise).unwrap(), None);
        }
    }
}
