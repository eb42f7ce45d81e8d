//! `bulkhead-daemon`: What every vhost-user backend shares: program conventions, serve loop, in-flight requests.
