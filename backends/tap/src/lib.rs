//! `tap`: Linux TAP devices.
