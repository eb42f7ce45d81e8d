//! Taps, networks, and the helper behind them.

use crate::case::{Case, Setting, refused};

pub(crate) const CASES: &[Case] = &[
    refused(
        "bulkhead-net --socket-path s --tap sixteen-letters-",
        2,
        &["--tap", "sixteen-letters-", "15 bytes"],
    ),
    refused(
        "bulkhead-net --socket-path s --tap lo",
        1,
        &["lo", "not a TAP device"],
    ),
    refused(
        "bulkhead-net --socket-path s --tap-fd 77",
        1,
        &["--tap-fd 77"],
    ),
    refused(
        "bulkhead-net --socket-path s --tap-fd 0",
        1,
        &["--tap-fd 0"],
    ),
    refused(
        "bulkhead-net-helper --network name=n,bridge=sixteen-letters-",
        2,
        &["--network", "sixteen-letters-", "15 bytes"],
    ),
    refused(
        "bulkhead-net-helper --network name=n,subnet=10.0.0.0/33",
        2,
        &["--network", "10.0.0.0/33"],
    ),
    refused(
        "bulkhead-net-helper --network default --network default",
        2,
        &["--network", "default", "twice"],
    ),
    refused(
        "bulkhead-net-helper --network name=n,subnet=10.1.0.0/24,bridge=lo",
        1,
        &["lo", "bridge="],
    ),
    refused(
        "bulkhead-net-helper --network default",
        1,
        &["192.168.124.0/24", "in use", "in-use0", "subnet="],
    )
    .when(Setting::SubnetInUse),
    refused(
        "bulkhead run --name g --kernel guest --net default",
        1,
        &["192.168.124.0/24", "in use", "in-use0", "subnet="],
    )
    .when(Setting::SubnetInUse),
    refused(
        "bulkhead-net-helper --network default",
        1,
        &["dnsmasq is not installed", "dnsmasq-base", "dhcp=off"],
    )
    .when(Setting::NoDnsmasq),
    // The helper does not run, or another program has its socket.
    refused(
        "bulkhead-net --socket-path s --network default",
        1,
        &[
            "bulkhead-net-helper is not running",
            "/run/bulkhead/net-helper.sock",
        ],
    ),
    refused(
        "bulkhead-net --socket-path s --network default --helper-socket missing",
        1,
        &["bulkhead-net-helper is not running", "missing"],
    ),
    refused(
        "bulkhead-net --socket-path s --network default --helper-socket text",
        1,
        &["bulkhead-net-helper is not running", "text"],
    ),
    refused(
        "bulkhead-net --socket-path s --network default --helper-socket LONG",
        1,
        &["xxx", "107"],
    ),
    refused(
        "bulkhead-net --socket-path s --network default --helper-socket http",
        1,
        &["http", "not of bulkhead-net-helper"],
    ),
    refused(
        "bulkhead-net --socket-path s --network default --helper-socket noise-packets",
        1,
        &["noise-packets", "bulkhead-net-helper", "not a message"],
    ),
    refused(
        "bulkhead-net --socket-path s --network default --helper-socket silent-packets",
        1,
        &["silent-packets", "bulkhead-net-helper", "not answered"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --net default --helper-socket missing",
        1,
        &["bulkhead-net-helper is not running", "missing"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --net default --helper-socket text",
        1,
        &["bulkhead-net-helper is not running", "text"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --net default --helper-socket LONG",
        1,
        &["xxx"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --net default --helper-socket http",
        1,
        &["http", "not of bulkhead-net-helper"],
    ),
    refused(
        "bulkhead run --name g --kernel guest --net default",
        1,
        &[
            "bulkhead-net-helper is not running",
            "start it as root (bulkhead-net-helper --network default --group GROUP)",
            "run without --net",
        ],
    )
    .when(Setting::OtherUser),
    refused(
        "bulkhead run --name g --kernel guest --net default --net lab --helper-socket missing",
        1,
        &[
            "start it (bulkhead-net-helper --socket-path ",
            " --network default --network name=lab,subnet=SUBNET,bridge=BRIDGE)",
            "--helper-socket",
        ],
    ),
    refused(
        "bulkhead run --name g --kernel guest --net default,model=e1000",
        2,
        &["--net", "model=e1000"],
    ),
];
