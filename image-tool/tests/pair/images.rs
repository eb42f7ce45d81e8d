//! Images that many tests work on, as lines of a shell which make them.

/// A raw one, `a.raw`, with holes and zeroes.
pub const RAW: &str = "
    qemu-img create -q -f raw a.raw 9000000
    qemu-io -f raw -c 'write -P 1 0 100k' -c 'write -P 2 1M 1234567' -c 'write -z 2M 300k' a.raw";

/// `base`, with data and zeroes.
pub const BASE: &str = "
    qemu-img create -q -f qcow2 base 8M
    qemu-io -f qcow2 -c 'write -P 3 64k 1M' -c 'write -P 4 5M 1k' -c 'write -z 6M 1M' base";

/// `overlay`, larger than the `base` below it, with a snapshot.
pub const OVERLAY: &str = "
    qemu-img create -q -f qcow2 -b base -F qcow2 overlay 12M
    qemu-io -f qcow2 -c 'write -P 5 0 70k' -c 'write -z 512k 128k' -c 'write -P 6 11M 1M' overlay
    qemu-img snapshot -c first overlay
    qemu-io -f qcow2 -c 'write -P 7 0 1M' overlay";
