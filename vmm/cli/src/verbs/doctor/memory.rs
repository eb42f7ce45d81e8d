//! Huge pages.

use super::finding::Finding;
use super::host::{self, Host};

const POOL: &str = "huge pages";
const FOLDER: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

pub(crate) fn check(_: &Host) -> Vec<Finding> {
    let count = |name| host::number(format!("{FOLDER}/{name}"));
    vec![pool(count("nr_hugepages"), count("free_hugepages"))]
}

fn pool(total: Option<u64>, free: Option<u64>) -> Finding {
    const MEND: &str = "sysctl vm.nr_hugepages=512";
    match (total, free) {
        (Some(0), _) => {
            let why = "the pool of 2 MiB pages is empty: guests run without hugepages=on";
            Finding::warn(POOL, why).run_as_root(MEND)
        }
        (Some(total), Some(0)) => {
            let why = format!("all {total} of 2 MiB are in use");
            Finding::warn(POOL, why).run_as_root(format!(
                "sysctl vm.nr_hugepages={}",
                total.saturating_mul(2)
            ))
        }
        (Some(total), Some(free)) => {
            Finding::ok(POOL, format!("{free} of {total} of 2 MiB are free"))
        }
        _ => Finding::warn(
            POOL,
            format!("{FOLDER} cannot be read: it is not known whether hugepages=on works"),
        )
        .run_as_root("mount -t sysfs sysfs /sys"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn only_a_pool_with_free_pages_is_ok() {
        assert_eq!(pool(Some(8), Some(2)).status(), Status::Ok);
        for (total, free) in [(Some(0), Some(0)), (Some(8), Some(0)), (None, None)] {
            let found = pool(total, free);
            assert_eq!(found.status(), Status::Warn);
            assert!(found.mend(true).is_some());
        }
    }
}
