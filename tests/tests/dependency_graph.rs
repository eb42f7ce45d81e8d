//! Who may depend on whom, and who may be unsafe, as ARCHITECTURE.md says: read from that page and compared with the
//! workspace as cargo sees it.
