//! An open qcow2 image.

use std::path::{Path, PathBuf};

use crate::buffer::{Destination, Source};
use crate::error::{Error, Result};
use crate::image::{Image, References};
use crate::options::{OpenOptions, Preallocation};
use crate::report::{CheckResult, Extent, Info, Repair, SnapshotInfo};
use crate::storage::Storage;

pub(crate) struct Qcow2 {}

fn not_yet() -> Error {
    Error::unsupported("qcow2 is not built in")
}

#[rustfmt::skip]
impl Qcow2 {
    pub(crate) fn open(_: Box<dyn Storage>, _: &OpenOptions) -> Result<Self> { Err(not_yet()) }
    pub(crate) fn set_data_file(&mut self, _: Box<dyn Storage>, _: PathBuf) {}
    pub(crate) fn references(&self) -> References { References::default() }
    pub(crate) fn size(&self) -> u64 { 0 }
    pub(crate) fn cluster_size(&self) -> u64 { 0 }
    pub(crate) fn read(&self, _: Option<&Image>, _: u64, _: &mut dyn Destination, _: usize, _: usize) -> Result<()> { Err(not_yet()) }
    pub(crate) fn write(&self, _: Option<&Image>, _: u64, _: &dyn Source, _: usize) -> Result<()> { Err(not_yet()) }
    pub(crate) fn write_zeroes(&self, _: Option<&Image>, _: u64, _: u64, _: bool) -> Result<()> { Err(not_yet()) }
    pub(crate) fn discard(&self, _: bool, _: u64, _: u64) -> Result<()> { Err(not_yet()) }
    pub(crate) fn flush(&self) -> Result<()> { Err(not_yet()) }
    pub(crate) fn close(&self) -> Result<()> { Err(not_yet()) }
    pub(crate) fn write_compressed(&self, _: u64, _: &[u8]) -> Result<()> { Err(not_yet()) }
    pub(crate) fn map(&self, _: u64, _: u64, _: &Path) -> Result<Extent> { Err(not_yet()) }
    pub(crate) fn info(&self, _: &Path) -> Result<Info> { Err(not_yet()) }
    pub(crate) fn check(&self, _: Repair) -> Result<CheckResult> { Err(not_yet()) }
    pub(crate) fn resize(&self, _: u64, _: Preallocation) -> Result<()> { Err(not_yet()) }
    pub(crate) fn snapshots(&self) -> Vec<SnapshotInfo> { Vec::new() }
    pub(crate) fn snapshot_create(&self, _: &str) -> Result<()> { Err(not_yet()) }
    pub(crate) fn snapshot_apply(&self, _: &str) -> Result<()> { Err(not_yet()) }
    pub(crate) fn snapshot_delete(&self, _: &str) -> Result<()> { Err(not_yet()) }
    pub(crate) fn change_backing_file(&self, _: Option<&str>, _: Option<&str>) -> Result<()> { Err(not_yet()) }
}
