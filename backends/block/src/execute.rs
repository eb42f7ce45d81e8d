//! What a request does to the image.

use qcow::{Destination, Image, Source};

use crate::request::{Range, Request};

/// Where data comes from and goes to.
pub(crate) enum Data<'a> {
    /// The request reads the disk.
    In(&'a mut dyn Destination),
    /// The request writes the disk.
    Out(&'a dyn Source),
    /// The request has no data.
    None,
}

/// Does `request`. With `write_through`, what it changed is on the medium afterwards.
pub(crate) fn execute(
    image: &Image,
    request: &Request,
    data: Data<'_>,
    write_through: bool,
) -> qcow::Result<()> {
    match (request, data) {
        (Request::Read(range), Data::In(destination)) => {
            return image.read_into(range.offset, destination);
        }
        (Request::Write(range), Data::Out(source)) => image.write_from(range.offset, source)?,
        (Request::Flush, _) => return image.flush(),
        (Request::Discard(ranges), _) => {
            for &Range { offset, length } in ranges {
                image.discard(offset, length)?;
            }
        }
        (Request::WriteZeroes(ranges), _) => {
            for &(Range { offset, length }, may_unmap) in ranges {
                image.write_zeroes(offset, length, may_unmap)?;
            }
        }
        // Nothing of the image's.
        _ => return Ok(()),
    }
    if write_through {
        image.flush()?;
    }
    Ok(())
}
