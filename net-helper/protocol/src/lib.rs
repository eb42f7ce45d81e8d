//! `bulkhead-net-protocol`: The messages between bulkhead-net-helper and its clients.
