//! Backing chains: each file is opened once, none is in a chain twice whatever its name, and a chain has an end.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot be set up has failed"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow::{
    Chain, ChainError, Content, CreateOptions, Error, ErrorKind, Format, Image, LinkFile,
    OpenOptions, RecordedBacking, Result, create, open_chain, open_file,
};

/// `0.qcow2` stands on `1.qcow2`, and so on; the last one is raw.
fn chain(dir: &Path, images: usize) -> PathBuf {
    for index in 0..images {
        let below = index + 1;
        let options = match below < images {
            true => CreateOptions {
                backing_file: Some(format!("{below}.qcow2")),
                backing_format: Some(match below + 1 < images {
                    true => Format::Qcow2,
                    false => Format::Raw,
                }),
                ..CreateOptions::new(Format::Qcow2, 1 << 20)
            },
            false => CreateOptions::new(Format::Raw, 1 << 20),
        };
        create(dir.join(format!("{index}.qcow2")), &options).unwrap();
    }
    dir.join("0.qcow2")
}

fn overlay(path: &Path, backing: &str) {
    let options = CreateOptions {
        backing_file: Some(backing.to_owned()),
        backing_format: Some(Format::Qcow2),
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    };
    create(path, &options).unwrap();
}

fn following() -> OpenOptions {
    OpenOptions::new(Format::Qcow2).follow_references()
}

fn depth(image: &Image) -> usize {
    std::iter::successors(Some(image), |image| image.backing().map(Arc::as_ref)).count()
}

#[test]
fn a_chain_may_be_as_long_as_the_options_say() {
    let dir = tempfile::tempdir().unwrap();
    let top = chain(dir.path(), 5);

    let image = Image::open(&top, &following().max_depth(5)).unwrap();
    assert_eq!(depth(&image), 5);
    drop(image);

    let error = Image::open(&top, &following().max_depth(4)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Backing);
    assert!(error.to_string().contains("more than 4 images"), "{error}");
}

#[test]
fn a_file_is_in_a_chain_once_whatever_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let (top, other) = (dir.path().join("top"), dir.path().join("other"));
    overlay(&top, "middle");
    overlay(&dir.path().join("middle"), "other");
    std::fs::hard_link(&top, &other).unwrap();

    let error = Image::open(&top, &following()).unwrap_err();

    assert_eq!(error.kind(), ErrorKind::Backing);
    let says = format!("{}: the backing chain loops", other.display());
    assert_eq!(error.to_string(), says);
}

/// Follows what images record, and keeps the order of the questions. With `within`, the first image lies in a raw one.
struct Asked {
    within: bool,
    most: u32,
    asked: Vec<String>,
}

impl Asked {
    fn note(&mut self, what: &str, path: &Path) {
        let name = path.file_stem().unwrap().to_string_lossy();
        self.asked.push(format!("{what} {name}"));
    }
}

impl Chain for Asked {
    type Link = (PathBuf, Format);
    type Error = Error;

    fn max_depth(&self) -> u32 {
        self.most
    }

    fn path<'a>(&self, link: &'a Self::Link) -> &'a Path {
        &link.0
    }

    fn file(&mut self, link: &mut Self::Link) -> Result<LinkFile<Self::Link>> {
        self.note("file", &link.0);
        if std::mem::take(&mut self.within) {
            return Ok(LinkFile::Image((link.0.clone(), Format::Raw)));
        }
        Ok(LinkFile::File(open_file(&link.0, false)?.into()))
    }

    fn options(&mut self, link: &mut Self::Link, content: &Content<'_>) -> Result<OpenOptions> {
        let mut magic = [0; 4];
        let read = content.read_at(0, &mut magic).unwrap();
        assert_eq!(read, 4);
        self.note(
            if magic == *b"QFI\xfb" {
                "qcow2"
            } else {
                "other"
            },
            &link.0,
        );
        assert_eq!(content.read_at(1 << 30, &mut magic).unwrap(), 0);
        Ok(OpenOptions::new(link.1))
    }

    fn backing(
        &mut self,
        link: &mut Self::Link,
        image: &Image,
        recorded: Option<RecordedBacking>,
    ) -> Result<Option<Self::Link>> {
        assert_eq!(image.path(), link.0);
        self.note("below", &link.0);
        Ok(recorded.map(|recorded| {
            let format = recorded.format.unwrap().parse().unwrap();
            (link.0.with_file_name(recorded.name), format)
        }))
    }

    fn refused(&self, link: &Self::Link, why: ChainError) -> Error {
        panic!("{}: {why}", link.0.display())
    }

    fn failed(&self, _link: &Self::Link, error: Error) -> Error {
        error
    }

    fn backing_failed(&self, _link: &Self::Link, error: Error) -> Error {
        error
    }
}

#[test]
fn each_image_is_opened_once_and_before_the_one_below() {
    let dir = tempfile::tempdir().unwrap();
    let top = chain(dir.path(), 3);
    let mut chain = Asked {
        within: true,
        most: 3,
        asked: Vec::new(),
    };

    let image = open_chain(&mut chain, &mut (top, Format::Qcow2)).unwrap();

    assert_eq!(depth(&image), 3);
    let expected = [
        // The raw image that it lies in comes first.
        "file 0", "file 0", "qcow2 0", "below 0", "qcow2 0", "below 0", // the two below
        "file 1", "qcow2 1", "below 1", "file 2", "other 2", "below 2",
    ];
    assert_eq!(chain.asked, expected);
}
