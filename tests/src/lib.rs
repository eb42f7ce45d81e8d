//! `bulkhead-tests`: End-to-end tests: real KVM, real taps, real kernels, real peers.
