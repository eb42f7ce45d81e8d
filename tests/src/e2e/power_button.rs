//! The ACPI power button, as an unmodified distribution kernel sees it: its `button` driver makes it a key.

use std::path::Path;

use anyhow::{Result, ensure};

use super::Stage;
use crate::guest::put;
use crate::guest_linux;
use crate::workplace::Workplace;

/// How often it is pressed. The last time the guest is paused.
const PRESSES: u32 = 3;

/// Says when each press has come as a key that is pressed and released (`struct input_event`), then powers off.
const LISTENER: &str = r#"
grep -A 4 'Name="Power Button"' /proc/bus/input/devices | grep -q event0 || fail "no power button"
exec 3</dev/input/event0
say listening
for press in $(seq "$PRESSES"); do
    for value in 01 00; do
        event=$(dd bs=24 count=1 <&3 2>/dev/null | od -An -tx1 -j16 | tr -d ' ')
        [ "$event" = "01007400${value}000000" ] || fail "press $press: event $event"
        dd bs=24 count=1 <&3 >/dev/null 2>&1
    done
    say "pressed $press"
done
"#;

pub(super) fn presses(workplace: &Workplace) -> Result<()> {
    let stage = Stage::new(workplace)?;
    let count = PRESSES.to_string();
    let modules = &guest_linux::POWER_BUTTON_MODULES;
    let guest = stage.guest_with_modules(modules, LISTENER, &[("PRESSES", &count)])?;
    let mut run = stage.run(&guest)?;
    run.wait_for("listening")?;
    for press in 1..=PRESSES {
        let requests: &[&str] = match press {
            PRESSES => &["vm.pause", "vm.power-button", "vm.resume"],
            _ => &["vm.power-button"],
        };
        for request in requests {
            let status = put(Path::new("/run/bulkhead/scenario/api.sock"), request);
            ensure!(status == 204, "{request}: {status}");
        }
        run.wait_for(&format!("pressed {press}"))?;
    }
    let end = run.wait()?;
    ensure!(
        end.status.success(),
        "bulkhead run: {}; it said:\n  {}",
        end.status,
        end.errors.join("\n  ")
    );
    stage.nothing_left()
}
