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
