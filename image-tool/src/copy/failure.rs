//! Why a copy fails.

/// The step that failed, and the offset in the input.
#[derive(Debug)]
pub(crate) enum Failure {
    Status(u64, qcow::Error),
    /// The data lies past the end of the image's file.
    Missing(u64),
    Read(u64, qcow::Error),
    Write(u64, qcow::Error),
}
