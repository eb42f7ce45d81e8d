//! `bench`.

use crate::images::sources;
use crate::pair::{Pair, reference_is_there};

#[test]
fn bench_announces_the_same_and_writes_the_same() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    sources(&pair);
    for line in [
        "bench -c 100 -f raw a.raw",
        "bench -c 100 -d 1 -f qcow2 top",
        // Numbers as C writes them.
        "bench -c 0X20 -d 010 -f raw a.raw",
        "bench -w -c +0144 --pattern=0X5 --flush-interval=0100 -d 020 -f raw a.raw",
        "bench -w -c 300 -S 8k -o 512 --pattern 7 -f qcow2 base",
        "bench -w -c 100 -d 10 --flush-interval=20 -s 64k -f raw a.raw",
        "bench -w -c 100 -d 10 --flush-interval=20 --no-drain -t none -i io_uring -f qcow2 top",
    ] {
        let (ours, theirs) = pair.run_both(&line.split(' ').collect::<Vec<_>>());
        let untimed = |text: &str| {
            text.lines()
                .filter(|line| !line.starts_with("Run "))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (ours.status, &ours.stderr),
            (theirs.status, &theirs.stderr),
            "{line}"
        );
        assert_eq!(untimed(&ours.stdout), untimed(&theirs.stdout), "{line}");
    }
    pair.same_image("a.raw", "raw");
    pair.same_image("base", "qcow2");
    for line in [
        "bench",
        "bench -w --flush-interval=1 -f raw a.raw",
        "bench --flush-interval=64 -f raw a.raw",
        "bench -c 0 a.raw",
        "bench -d 0 a.raw",
        "bench -c 08 a.raw",
        "bench -c 0x+5 a.raw",
        "bench -c 0x a.raw",
        "bench -c 99999999999999999999 a.raw",
        "bench -s 0 a.raw",
        "bench -S x a.raw",
        "bench -o x a.raw",
        "bench -t x a.raw",
        "bench -i x a.raw",
        "bench --pattern 256 a.raw",
    ] {
        pair.same(&line.split(' ').collect::<Vec<_>>());
    }
}

#[test]
fn requests_go_on_from_the_beginning_and_fail_beyond_the_end() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&["truncate -s 1M a.raw", "truncate -s 1001 odd.raw"]);
    for line in [
        "bench -w -c 16 -s 64k --pattern 1 -f raw a.raw",
        "bench -w -c 20 -s 64k --pattern 2 -f raw a.raw",
        "bench -w -c 3 -s 64k -S 960k --pattern 3 -f raw a.raw",
        "bench -w -c 16 -s 4k -S 60k -o 32k --pattern 4 -f raw a.raw",
        "bench -w -c 16 -d 1 -s 64k -S 63k --pattern 5 -f raw a.raw",
        "bench -w -c 17 -d 1 -s 64k -S 63k --pattern 6 -f raw a.raw",
        "bench -c 2 -s 1M -S 4k -f raw a.raw",
        "bench -c 2 -s 1M -S 2M -f raw a.raw",
        // A raw file that ends within a sector is a disk up to the sector's end.
        "bench -c 3 -s 23 -S 1 -o 999 -f raw odd.raw",
        "bench -c 4 -s 23 -S 1 -o 999 -f raw odd.raw",
        "bench -c 3 -s 512 -f raw odd.raw",
    ] {
        let (ours, theirs) = pair.run_both(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(
            (ours.status, &ours.stderr),
            (theirs.status, &theirs.stderr),
            "{line}"
        );
        pair.same_image("a.raw", "raw");
    }
}
