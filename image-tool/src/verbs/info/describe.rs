//! What `info` finds out: the description of an image and of those it stands on, each of which is opened once.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Error, Result, anyhow};
use qcow::{ChainError, Content, Image, Info, LinkFile, OpenOptions, RecordedBacking};

use crate::command_line::format_options::extent_size;
use crate::command_line::source::Source;
use crate::open::chain::{Chain, Link};
use crate::open::{self, Opening};

/// The description of one image.
pub(super) struct ImageInfo {
    pub(super) source: Source,
    pub(super) info: Info,
    /// Length of the file, of which the image may be a part.
    pub(super) file_size: u64,
    /// The file's extent size hint, if it has one.
    pub(super) extent_size_hint: Option<u32>,
    /// The image that is its `file` node.
    pub(super) file_node: Option<Box<ImageInfo>>,
}

/// The descriptions of the image and, with `follow`, of its backing chain.
pub(super) fn collect(first: Source, follow: bool, share: bool) -> Result<Vec<ImageInfo>> {
    let mut chain = Described {
        chain: Chain::default(),
        follow,
        share,
        file_node: None,
        infos: Vec::new(),
    };
    let mut top = DescribedLink::new(first, share);
    qcow::open_chain(&mut chain, &mut top)?;
    Ok(chain.infos)
}

/// A chain whose images are described while they are opened.
struct Described {
    chain: Chain,
    follow: bool,
    share: bool,
    /// The description of the `file` node of the image that is opened next.
    file_node: Option<Box<ImageInfo>>,
    infos: Vec<ImageInfo>,
}

/// An image of that chain.
struct DescribedLink {
    link: Link,
    is_file_node: bool,
    /// Its file, if it lies in one.
    file: Option<Arc<File>>,
}

impl DescribedLink {
    fn new(source: Source, share: bool) -> Self {
        let how = Opening {
            share,
            alone: true,
            for_info: true,
            ..Opening::default()
        };
        Self {
            link: Link::new(source, how),
            is_file_node: false,
            file: None,
        }
    }

    fn error(&self, error: &Error) -> Error {
        open::could_not_open(&self.link.source, error)
    }

    /// The image's description, without its `file` node.
    fn describe(&self, image: &Image) -> Result<ImageInfo> {
        let info = open::info(image).map_err(|error| self.error(&error))?;
        let mut file_size = info.file_size;
        if let (Some(file), false) = (&self.file, self.link.source.windows.is_empty()) {
            // By its end, since a device's metadata has no size.
            file_size = (&**file).seek(SeekFrom::End(0))?;
        }
        Ok(ImageInfo {
            source: self.link.source.clone(),
            info,
            file_size,
            extent_size_hint: self.file.as_ref().and_then(extent_size::hint),
            file_node: None,
        })
    }
}

impl qcow::Chain for Described {
    type Link = DescribedLink;
    type Error = Error;

    fn path<'a>(&self, link: &'a DescribedLink) -> &'a Path {
        &link.link.source.path
    }

    fn file(&mut self, link: &mut DescribedLink) -> Result<LinkFile<DescribedLink>> {
        let file = self.chain.file(&mut link.link);
        Ok(match file.map_err(|error| link.error(&error))? {
            LinkFile::File(file) => {
                link.file = Some(file.clone());
                LinkFile::File(file)
            }
            LinkFile::Storage(file, storage) => LinkFile::Storage(file, storage),
            LinkFile::Image(node) => LinkFile::Image(DescribedLink {
                link: node,
                is_file_node: true,
                file: None,
            }),
        })
    }

    fn options(&mut self, link: &mut DescribedLink, content: &Content<'_>) -> Result<OpenOptions> {
        let options = self.chain.options(&mut link.link, content);
        options.map_err(|error| link.error(&error))
    }

    fn backing(
        &mut self,
        link: &mut DescribedLink,
        image: &Image,
        recorded: Option<RecordedBacking>,
    ) -> Result<Option<DescribedLink>> {
        let mut described = link.describe(image)?;
        if let Some(node) = self.file_node.take() {
            if described.info.cluster_size.is_none() {
                // raw shows the cluster size of its file node.
                described.info.cluster_size = node.info.cluster_size;
            }
            described.file_size = node.info.virtual_size;
            described.file_node = Some(node);
        }
        if link.is_file_node {
            self.file_node = Some(Box::new(described));
            return Ok(None);
        }
        self.infos.push(described);
        let Some(recorded) = recorded.filter(|_| self.follow) else {
            return Ok(None);
        };
        let RecordedBacking { name, format } = recorded;
        let backing = Source::recorded(self.path(link), &name, format.as_deref());
        let backing = backing.map_err(|why| {
            anyhow!(
                "Could not determine absolute backing filename, but backing filename '{name}' present: {why}"
            )
        })?;
        Ok(Some(DescribedLink::new(backing, self.share)))
    }

    fn refused(&self, link: &DescribedLink, why: ChainError) -> Error {
        self.chain.refused(&link.link, why)
    }

    fn failed(&self, link: &DescribedLink, error: qcow::Error) -> Error {
        link.error(&self.chain.failed(&link.link, error))
    }

    fn backing_failed(&self, link: &DescribedLink, error: Error) -> Error {
        open::named_by(error, self.path(link))
    }
}
