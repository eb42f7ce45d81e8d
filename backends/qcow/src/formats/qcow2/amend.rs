//! Changes of what the header says: the backing file, the version, features, the width of refcounts.

mod compat;
mod empty;
mod expand;

use crate::error::{Error, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::layout::extension::kind;

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
        let mut engine = self.engine_exclusive();
        engine.check_usable()?;
        if self.external
            && name.is_some()
            && engine.header.autoclear & crate::formats::qcow2::layout::feature::RAW_EXTERNAL != 0
        {
            return Err(Error::invalid(
                "an image with a raw external data file cannot have a backing file",
            ));
        }
        self.commit(&mut engine, true)?;
        let mut header = engine.header.clone();
        header.backing = name.map(str::to_owned);
        header.set_extension(
            kind::BACKING_FORMAT,
            name.and(format).map(|format| format.as_bytes().to_vec()),
        );
        self.update_header(&mut engine, header)
    }
}
