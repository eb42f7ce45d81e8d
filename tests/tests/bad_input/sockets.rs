//! Sockets to connect to, and to listen on.

use crate::case::{Case, Setting, refused};

pub(crate) const CASES: &[Case] = &[
    // The monitor connects to it.
    refused(
        "bulkhead-vmm --kernel guest --disk vhost_user=on,socket=missing",
        1,
        &["--disk: missing", "no such socket"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --net vhost_user=on,socket=missing",
        1,
        &["--net: missing", "no such socket"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --vhost-user type=26,socket=missing",
        1,
        &["--vhost-user: missing", "no such socket"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --disk vhost_user=on,socket=text",
        1,
        &["--disk: text", "not a socket"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --disk vhost_user=on,socket=LONG",
        1,
        &["--disk: xxx", "too long", "107"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --disk vhost_user=on,socket=http",
        1,
        &["--disk: http", "not vhost-user"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --disk vhost_user=on,socket=noise",
        1,
        &["--disk: noise", "not vhost-user"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --disk vhost_user=on,socket=silent",
        1,
        &["--disk: silent", "did not answer"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --disk vhost_user=on,socket=hangs-up",
        1,
        &["--disk: hangs-up", "closed the connection"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --disk vhost_user=on,socket=noise-packets",
        1,
        &["--disk: noise-packets", "not vhost-user"],
    )
    .with_kvm(),
    // The programs listen on it.
    refused(
        "bulkhead-vmm --kernel guest --api-socket path=missing/s",
        1,
        &["--api-socket", "missing/s", "No such file"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --api-socket path=text",
        1,
        &["--api-socket", "text"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --api-socket path=LONG",
        1,
        &["--api-socket", "xxx", "107"],
    ),
    refused(
        "bulkhead-vmm --kernel guest --serial socket=missing/s",
        1,
        &["--serial", "missing/s", "No such file"],
    )
    .with_kvm(),
    refused(
        "bulkhead-vmm --kernel guest --serial file=missing/f",
        1,
        &["--serial", "missing/f", "No such file"],
    )
    .with_kvm(),
    refused(
        "bulkhead-block --format raw --blk-file disk.raw --socket-path missing/s",
        1,
        &["missing/s", "No such file"],
    ),
    refused(
        "bulkhead-block --format raw --blk-file disk.raw --socket-path text",
        1,
        &["text exists and is not a socket"],
    ),
    refused(
        "bulkhead-block --format raw --blk-file disk.raw --socket-path LONG",
        1,
        &["socket path xxx", "120 bytes", "107"],
    ),
    refused(
        "bulkhead-block --format raw --blk-file disk.raw --fd 77",
        1,
        &["--fd 77"],
    ),
    refused(
        "bulkhead-net --tap tap0 --socket-path missing/s",
        1,
        &["missing/s", "No such file"],
    ),
    refused(
        "bulkhead-net --tap tap0 --socket-path text",
        1,
        &["text exists and is not a socket"],
    ),
    refused(
        "bulkhead-net --tap tap0 --socket-path LONG",
        1,
        &["socket path xxx", "120 bytes", "107"],
    ),
    refused(
        "bulkhead-net-helper --network default --socket-path text",
        1,
        &["/text exists and is not a socket"],
    ),
    refused(
        "bulkhead-net-helper --network default --socket-path LONG",
        1,
        &["/xxx", "107"],
    ),
    refused(
        "env XDG_RUNTIME_DIR=/run/LONG bulkhead run --name g --kernel guest",
        1,
        &["/run/xxx", "too long", "XDG_RUNTIME_DIR"],
    )
    .when(Setting::OtherUser),
    refused(
        "env -u XDG_RUNTIME_DIR bulkhead run --name g --kernel guest",
        1,
        &["XDG_RUNTIME_DIR"],
    )
    .when(Setting::OtherUser),
];
