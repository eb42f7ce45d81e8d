//! Opens the images of a backing chain, one by one, from the top down. This is the only place that follows backing
//! files: each file is opened once, no file is in a chain twice, and a chain has at most so many images.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::Image;
use crate::options::OpenOptions;
use crate::storage::Storage;
use crate::storage::visited::{ChainError, MAX_DEPTH, VisitedFiles};

/// Decides what a backing chain consists of: where each image lies, how it is opened, and on which image it stands.
/// [`open_chain`] calls these methods for one image after the other, in the order they have here, and calls
/// [`Chain::file`] first for the image that another one lies in.
///
/// [`Image::open`] follows the names that images record. A program that lets people replace parts of a chain, or that
/// has error messages of its own, implements this trait.
pub trait Chain {
    /// An image of the chain, before it is opened.
    type Link;
    /// Why a chain cannot be opened.
    type Error;

    /// The most images of a chain, counting those that others lie in.
    fn max_depth(&self) -> u32 {
        MAX_DEPTH
    }

    /// The name of the image in messages, and what relative names in it are relative to.
    fn path<'a>(&self, link: &'a Self::Link) -> &'a Path;

    /// Opens the file of the image.
    ///
    /// # Errors
    /// The file cannot be opened.
    fn file(&mut self, link: &mut Self::Link) -> Result<LinkFile<Self::Link>, Self::Error>;

    /// How the image is opened. What [`OpenOptions::backing`] says of it does not matter.
    ///
    /// # Errors
    /// The format is not known.
    fn options(
        &mut self,
        link: &mut Self::Link,
        content: &Content<'_>,
    ) -> Result<OpenOptions, Self::Error>;

    /// The image that this one, which is open now, stands on.
    ///
    /// # Errors
    /// The image cannot be used, or what it records cannot be followed.
    fn backing(
        &mut self,
        link: &mut Self::Link,
        image: &Image,
        recorded: Option<RecordedBacking>,
    ) -> Result<Option<Self::Link>, Self::Error>;

    /// The error for an image whose file cannot be part of this chain.
    fn refused(&self, link: &Self::Link, why: ChainError) -> Self::Error;

    /// The error for an image that cannot be opened.
    fn failed(&self, link: &Self::Link, error: Error) -> Self::Error;

    /// The error for an image, when opening the one it stands on failed with `error`.
    fn backing_failed(&self, link: &Self::Link, error: Self::Error) -> Self::Error;
}

/// What an image lies in.
pub enum LinkFile<L> {
    /// A file, which is locked as the options say.
    File(Arc<File>),
    /// A file that is accessed through a storage of the caller's own; it is not locked.
    Storage(Arc<File>, Box<dyn Storage>),
    /// The disk of another image.
    Image(L),
}

/// The backing file that an image records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedBacking {
    /// Its name, as it is recorded.
    pub name: String,
    /// The name of its format.
    pub format: Option<String>,
}

/// The content of what an image lies in, before the image is opened.
pub struct Content<'a>(&'a Place);

impl Content<'_> {
    /// Reads into `buffer` from `offset`; fewer bytes at the end, and none behind it.
    ///
    /// # Errors
    /// The system's.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let inside = |size: u64| usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        match self.0 {
            Place::File(file) => file.read_at(buffer, offset),
            Place::Storage(storage) => {
                let len = buffer.len().min(inside(storage.len()?));
                let mut part = buffer.get_mut(..len).unwrap_or_default();
                storage.read(offset, &mut part, 0, len)?;
                Ok(len)
            }
        }
    }
}

/// What an image lies in, once that is open.
pub(super) enum Place {
    File(Arc<File>),
    Storage(Box<dyn Storage>),
}

/// Opens a chain; `top` is the image that stands on all others.
///
/// # Errors
/// Those of the [`Chain`].
pub fn open_chain<C: Chain>(chain: &mut C, top: &mut C::Link) -> Result<Image, C::Error> {
    Walk::new(chain).open(top)
}

/// A chain that is being opened.
pub(super) struct Walk<'a, C> {
    chain: &'a mut C,
    visited: VisitedFiles,
}

impl<'a, C: Chain> Walk<'a, C> {
    pub(super) fn new(chain: &'a mut C) -> Self {
        let visited = VisitedFiles::new(chain.max_depth());
        Self { chain, visited }
    }

    fn open(&mut self, link: &mut C::Link) -> Result<Image, C::Error> {
        let place = match self.chain.file(link)? {
            LinkFile::File(file) => {
                self.add(&file, link)?;
                Place::File(file)
            }
            LinkFile::Storage(file, storage) => {
                self.add(&file, link)?;
                Place::Storage(storage)
            }
            LinkFile::Image(mut outer) => {
                Place::Storage(Box::new(Arc::new(self.open(&mut outer)?)))
            }
        };
        self.open_in(place, link)
    }

    /// Adds the next file of the chain.
    pub(super) fn add(&mut self, file: &File, link: &C::Link) -> Result<(), C::Error> {
        let added = self.visited.add(file);
        added.map_err(|why| self.chain.refused(link, why))
    }

    /// Opens the image in an open file or storage, and those it stands on.
    pub(super) fn open_in(&mut self, place: Place, link: &mut C::Link) -> Result<Image, C::Error> {
        let options = self.chain.options(link, &Content(&place))?;
        let path = self.chain.path(link);
        let opened = Image::open_alone(place, path, &options, &self.visited);
        let image = opened.map_err(|error| self.chain.failed(link, error))?;
        let references = image.references();
        let recorded = references.backing.map(|name| RecordedBacking {
            name,
            format: references.backing_format,
        });
        let Some(mut below) = self.chain.backing(link, &image, recorded)? else {
            return Ok(image);
        };
        let backing = self
            .open(&mut below)
            .map_err(|error| self.chain.backing_failed(link, error))?;
        Ok(image.over(Arc::new(backing)))
    }
}
