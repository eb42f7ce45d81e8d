//! Changes of what the header says: the backing file, the version, features, the width of refcounts.

mod compat;
mod empty;
mod expand;

use crate::error::{Error, Result};
use crate::extension::kind;
use crate::header::{Header, SECTOR};
use crate::qcow2::Qcow2;

const MAX_BACKING_NAME: usize = 1023;

impl Qcow2 {
    /// Records another backing file, or none. Looks at no content.
    pub(crate) fn change_backing_file(
        &self,
        name: Option<&str>,
        format: Option<&str>,
    ) -> Result<()> {
        if name.is_some_and(|name| name.is_empty() || name.len() > MAX_BACKING_NAME) {
            return Err(Error::invalid(format!(
                "the name of a backing file must have 1 to {MAX_BACKING_NAME} bytes"
            )));
        }
        if name.is_some() && format.is_none() {
            return Err(Error::invalid("a backing file needs a format"));
        }
        let _guard = self.ranges.exclusive(0..u64::MAX);
        let mut engine = self.engine();
        engine.check_usable()?;
        if self.external
            && name.is_some()
            && engine.header.autoclear & crate::feature::RAW_EXTERNAL != 0
        {
            return Err(Error::invalid(
                "an image with a raw external data file cannot have a backing file",
            ));
        }
        self.commit(&mut engine, true)?;
        let mut header = engine.header.clone();
        let old = (
            header.backing_offset,
            header.backing.as_ref().map_or(0, String::len) as u64,
        );
        header.backing = name.map(str::to_owned);
        header.backing_offset = 0;
        header.set_extension(
            kind::BACKING_FORMAT,
            name.and(format).map(|format| format.as_bytes().to_vec()),
        );
        if let Some(name) = name {
            self.write_backing_name(&mut header, name, old)?;
        } else {
            self.write_header(&header)?;
        }
        self.sync(&mut engine)?;
        engine.header = header;
        Ok(())
    }

    /// Writes a new backing file name beside the old one, and then the header, so that at any instant one of them is whole.
    fn write_backing_name(&self, header: &mut Header, name: &str, old: (u64, u64)) -> Result<()> {
        // Whether a name fits the header depends on nothing but lengths; any offset will do to find out.
        header.backing_offset = 1;
        let header_len = header.encode().len();
        let (room, name_len) = (1usize << header.cluster_bits, name.len());
        if header_len + name_len > room {
            return Err(Error::invalid(
                "the name of the backing file does not fit into the first cluster",
            ));
        }
        if header_len + name_len <= SECTOR {
            header.backing_offset = header_len as u64;
            let mut sector = header.encode();
            sector.extend_from_slice(name.as_bytes());
            sector.resize(SECTOR, 0);
            return self.write_file(0, &sector);
        }
        let old_end = (old.0 + old.1).next_multiple_of(8);
        let beside = [
            header_len.max(SECTOR) as u64,
            old_end.max(header_len as u64),
        ];
        let fits = |at: &u64| {
            let end = at + name_len as u64;
            end <= room as u64 && (end <= old.0 || *at >= old.0 + old.1)
        };
        // Without room for both the old one is overwritten.
        header.backing_offset = beside.into_iter().find(fits).unwrap_or(header_len as u64);
        self.write_file(header.backing_offset, name.as_bytes())?;
        self.storage
            .sync()
            .map_err(|error| Error::io("flush error", error))?;
        self.write_header(header)
    }
}
