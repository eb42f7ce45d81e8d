//! `bulkhead-process`: What every Bulkhead process does to itself: exit statuses, readiness, confinement.
