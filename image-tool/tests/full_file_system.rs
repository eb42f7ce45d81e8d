//! A file system that runs full: whatever fails leaves a sound image, without leaked clusters, and the same disk.

#![allow(clippy::disallowed_macros, reason = "a test prints why it was skipped")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::path::Path;
use std::process::Command;

use pair::{Pair, reference_is_there};

/// What is tried: on how large a file system, what is there before, the command, the images to be checked, and whether
/// the first of them still shows the same disk.
struct Case {
    size: &'static str,
    before: &'static str,
    command: &'static str,
    images: &'static str,
    same: bool,
}

const OVERLAY: &str = "qemu-img create -q -f qcow2 base 64M
    qemu-img create -q -f qcow2 -b base -F qcow2 top 64M
    qemu-io -f qcow2 -c 'write -P 3 0 20M' top";
const SMALL_CLUSTERS: &str = "qemu-img create -q -f qcow2 -o cluster_size=4k base 64M
    qemu-img create -q -f qcow2 -b base -F qcow2 top 64M
    qemu-io -f qcow2 -c 'write -P 3 0 20M' top";
const SOURCE: &str = "qemu-img create -q -f qcow2 source 64M
    qemu-io -f qcow2 -c 'write -P 3 0 20M' source
    qemu-img create -q -f qcow2 target 64M";
const ONE: &str = "qemu-img create -q -f qcow2 image 64M
    qemu-io -f qcow2 -c 'write -P 3 0 20M' image";
const FULL: &str = "qemu-img create -q -f qcow2 -o cluster_size=4k image 64M
    qemu-io -f qcow2 -c 'write -P 3 0 2M' image
    qemu-img snapshot -c old image
    qemu-io -f qcow2 -c 'write -P 4 0 2M' image
    dd if=/dev/zero of=filler bs=4k || true";
const TWO: &str = "qemu-img create -q -f qcow2 old 64M
    qemu-io -f qcow2 -c 'write -P 3 0 10M' old
    qemu-img create -q -f qcow2 new 64M
    qemu-img create -q -f qcow2 -b old -F qcow2 top";

const fn case(
    size: &'static str,
    before: &'static str,
    command: &'static str,
    images: &'static str,
    same: bool,
) -> Case {
    Case {
        size,
        before,
        command,
        images,
        same,
    }
}

const CASES: [Case; 16] = [
    case("30M", OVERLAY, "commit top", "top base", true),
    case("30M", SMALL_CLUSTERS, "commit top", "top base", true),
    case(
        "30M",
        SOURCE,
        "convert -n -O qcow2 source target",
        "target",
        false,
    ),
    case(
        "30M",
        SOURCE,
        "convert -n -W -O qcow2 source target",
        "target",
        false,
    ),
    case(
        "12M",
        TWO,
        "convert -n -c -O qcow2 /dev/random.img new",
        "new",
        false,
    ),
    case(
        "30M",
        ONE,
        "resize --preallocation=full image 128M",
        "image",
        true,
    ),
    case(
        "30M",
        ONE,
        "resize --preallocation=falloc image 128M",
        "image",
        true,
    ),
    case(
        "22M",
        ONE,
        "resize --preallocation=metadata image 1T",
        "image",
        true,
    ),
    case(
        "30M",
        ONE,
        "bench -f qcow2 -w -c 300 -s 65536 -o 20M image",
        "image",
        false,
    ),
    case("8M", FULL, "snapshot -c new image", "image", true),
    case("8M", FULL, "snapshot -a old image", "image", false),
    case("8M", FULL, "snapshot -d old image", "image", true),
    case("8M", FULL, "bitmap --add image bits", "image", true),
    case("8M", FULL, "amend -o refcount_bits=64 image", "image", true),
    case("8M", FULL, "resize image 16G", "image", true),
    case(
        "16M",
        TWO,
        "rebase -f qcow2 -b new -F qcow2 top",
        "top",
        true,
    ),
];

/// What a tool leaves: its status, and of each image the status of a check.
fn leaves(folder: &Path, tool: &str, case: &Case) -> Option<(i32, Vec<i32>, String)> {
    let _ = std::fs::remove_dir_all(folder.join("place"));
    let (before, images) = (case.before, case.images);
    let first = images.split(' ').next().unwrap();
    let command = case.command.replace("/dev/random.img", "../random");
    let same = match case.same {
        true => {
            format!("qemu-img compare -q -f qcow2 -F qcow2 {first} ../before/{first} || echo other")
        }
        false => String::new(),
    };
    let script = format!(
        "mkdir place; cd place; mkdir full; head -c 20M /dev/urandom > random
        mount -t tmpfs -o size={} none full; cd full
        ( {before} ) > ../log 2>&1
        mkdir ../before; cp --sparse=always * ../before; rm -f ../before/filler
        set +e
        timeout 100 {tool} {command} > ../log 2>&1
        echo status $?
        for image in {images}; do qemu-img check $image > ../check 2>&1; echo check $?; done
        rm -f filler
        {same}",
        case.size
    );
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-e", "-c", &script])
        .current_dir(folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers = |word: &str| -> Vec<i32> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(word));
        lines.map(|number| number.trim().parse().unwrap()).collect()
    };
    if numbers("status").is_empty() {
        let why = String::from_utf8_lossy(&output.stderr);
        eprintln!("skipped: no file system can be mounted here: {why}");
        return None;
    }
    Some((numbers("status")[0], numbers("check"), text))
}

#[test]
fn a_full_file_system_leaves_no_leaks() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    let tool = env!("CARGO_BIN_EXE_image-tool");
    for case in &CASES {
        let Some((status, checks, text)) = leaves(&pair.ours(), tool, case) else {
            return;
        };
        assert_ne!(status, 124, "{} hangs", case.command);
        assert!(
            checks.iter().all(|check| *check == 0),
            "{}: {text}",
            case.command
        );
        assert!(!text.contains("other"), "{}: {text}", case.command);
    }
    // They are cases in which there is no space.
    let failed = |case: &Case| leaves(&pair.ours(), tool, case).unwrap().0 == 1;
    assert!(CASES[..9].iter().all(failed));
}
