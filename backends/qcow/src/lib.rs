//! `qcow`: Raw and qcow2 disk images.
