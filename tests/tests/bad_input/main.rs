//! What every program does with bad input: one `error: …` line that says what was wrong with which argument or file,
//! exit status 1 (2 for usage), and nothing left behind: no file, process, link, address, nftables table or setting.
//!
//! A case is a command line, the status it has to end with, and words that its line has to have in it. All of them run
//! natively, one after the other, in namespaces of this test's own, where whatever is left can be seen.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod case;
mod disks;
mod kernels;
mod kvm;
mod listeners;
mod networks;
mod place;
mod sizes;
mod sockets;
mod usage;

use bulkhead_tests::guest::in_own_host;
use place::Place;

#[test]
fn bad_input_is_told_in_one_line_and_leaves_nothing() {
    const NAME: &str = "bad_input_is_told_in_one_line_and_leaves_nothing";
    in_own_host(NAME, || {
        let place = Place::new();
        let has_kvm = bulkhead_tests::guest::kvm_is_usable(NAME);
        let groups = [
            usage::CASES,
            kvm::CASES,
            kernels::CASES,
            sizes::CASES,
            sockets::CASES,
            disks::CASES,
            networks::CASES,
        ];
        let mut complaints = Vec::new();
        let mut skipped = 0;
        for case in groups.into_iter().flatten() {
            if case.needs_kvm && !has_kvm {
                skipped += 1;
                continue;
            }
            // All of them before it fails, so that one run shows all that is wrong.
            complaints.extend(place.complaint(case));
        }
        if skipped > 0 {
            eprintln!("skipped: {NAME}: {skipped} cases that need KVM");
        }
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    });
}
