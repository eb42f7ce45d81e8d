//! Repairs, and what must hold of an image that was repaired.

use qcow::{CheckResult, Repair};

use crate::for_check;
use crate::host::Host;

/// Repairs after which the rest is given up.
const ROUNDS: usize = 4;

/// What came of a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is wrong any more.
    Sound,
    /// It was refused, or says itself that it could not mend everything.
    GivenUp,
}

/// Whether a check found nothing that does harm. Of a repaired image two places may lie in one cluster; where one of them is given up,
/// the flag of the other becomes due, and that it is missing does none.
pub fn is_harmless(found: &CheckResult) -> bool {
    let due = |message: &&String| {
        message.starts_with("ERROR OFLAG_COPIED ") && message.ends_with(" refcount=1")
    };
    let due = found.messages.iter().filter(due).count() as u64;
    found.corruptions == due && found.check_errors == 0 && found.unfinished.is_none()
}

/// One repair, by somebody who opens the image for nothing else. `None` if it could not be made.
pub fn repair(host: &Host, repair: Repair) -> Option<CheckResult> {
    let image = host.open_alone(for_check().writable(true)).ok()?;
    let result = image.check(repair).ok()?;
    image.close().ok()?;
    Some(result)
}

/// Repairs until a check finds nothing. What is said to be mended is, unless one table lies in another: then mending one may damage
/// the other, which the next repair finds, and so on.
pub fn repair_all(host: &Host) -> Outcome {
    for _ in 0..ROUNDS {
        let Some(repaired) = repair(host, Repair::All) else {
            return Outcome::GivenUp;
        };
        if !repaired.is_sound() {
            return Outcome::GivenUp;
        }
        let found = host
            .open_alone(for_check())
            .and_then(|image| image.check(Repair::None));
        let Ok(found) = found else {
            panic!("what was repaired cannot be checked: {found:?}");
        };
        if found.is_sound() && found.leaks == 0 {
            return Outcome::Sound;
        }
        assert!(
            repaired.corruptions_fixed + repaired.leaks_fixed > 0,
            "a repair finds nothing, a check finds {found:?}"
        );
    }
    assert!(host.overlaps(), "{ROUNDS} repairs are not enough");
    Outcome::GivenUp
}
