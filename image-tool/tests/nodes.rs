//! Images described by options (`--image-opts`, `json:{…}`) as far as raw, qcow2 and local files go, against qemu-img;
//! and names of that kind that images record.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fs;

use pair::{Pair, must, reference_is_there};

/// `a.q`: a qcow2 image; `c.raw`: the same from 4096 on, with a mebibyte behind it.
fn prepared() -> Pair {
    let pair = Pair::new();
    pair.prepare(&[
        &["qemu-img", "create", "-q", "-f", "qcow2", "a.q", "1M"],
        &["qemu-io", "-c", "write -P 3 0 64k", "a.q"],
        &[
            "sh",
            "-c",
            "(head -c 4096 /dev/zero; cat a.q; head -c 1M /dev/zero) > c.raw",
        ],
    ]);
    pair
}

#[test]
fn options_that_tune_are_checked_alike() {
    if !reference_is_there() {
        return;
    }
    let pair = prepared();
    for option in [
        "read-only=maybe",
        "read-only=off",
        "auto-read-only=x",
        "cache.direct=x",
        "cache.no-flush=y",
        "cache.writeback=on",
        "force-share=x",
        "discard=x",
        "discard=on",
        "detect-zeroes=x",
        "lazy-refcounts=x",
        "lazy-refcounts=on",
        "pass-discard-other=x",
        "discard-no-unref=x",
        "overlap-check=x",
        "overlap-check=cached",
        "overlap-check.template=x",
        "overlap-check.main-header=x",
        "overlap-check.main-header=on",
        "overlap-check.nothing=on",
        "cache-size=abc",
        "cache-size=1M",
        "l2-cache-size=-1",
        "refcount-cache-size=x",
        "cache-clean-interval=x",
        "cache-clean-interval=5",
        "keep-dirty=on",
        "discard-granularity=4k",
        "node-name=",
        "node-name=1",
        "node-name=a.b",
        "node-name=a_name_of_thirty_two_characters_",
        "file.node-name=a_name_of_thirty_one_characters",
        "file.locking=x",
        "file.aio=x",
        "file.aio=threads",
        "file.aio-max-batch=x",
        "file.drop-cache=x",
        "file.read-only=maybe",
    ] {
        let options = format!("driver=qcow2,file.driver=file,file.filename=a.q,{option}");
        pair.same_reading(&["info", "--image-opts", &options]);
    }
}

#[test]
fn what_is_no_node_is_told_alike() {
    if !reference_is_there() {
        return;
    }
    let pair = prepared();
    for options in [
        "driver=qcow2,file.filename=a.q,read-only",
        "driver=qcow2,file.filename=a.q,noread-only",
        "driver=qcow2,file.filename=a.q,nothing",
        "driver=qcow2,file=x",
        "driver=qcow2,file=x,file.filename=a.q",
        "driver=qcow2,file.filename=a.q,backing=x",
        "driver=qcow2,file.filename=a.q,backing=x,backing.driver=raw",
        "driver=qcow2,file.filename=a.q,data-file=x",
        "driver=qcow2,file.filename=a.q,data-file.filename=c.raw",
        "driver=qcow2",
        "driver=file",
        "file.driver=file",
        "file.filename=",
        "driver=qcow2,file.driver=file",
    ] {
        pair.same_reading(&["map", "--image-opts", options]);
    }
}

#[test]
fn nodes_are_opened_and_shown_alike() {
    if !reference_is_there() {
        return;
    }
    let pair = prepared();
    let part = "driver=qcow2,file.driver=raw,file.offset=4096,file.file.filename=c.raw";
    let json = r#"json:{"driver":"qcow2","file":{"driver":"raw","offset":4096,"size":1310720,"file":{"driver":"file","filename":"c.raw"}}}"#;
    for arguments in [
        vec![
            "info",
            "--image-opts",
            "driver=raw,offset=4096,file.filename=c.raw",
        ],
        vec![
            "info",
            "--image-opts",
            "driver=raw,offset=4096,size=64k,file.driver=file,file.filename=c.raw",
        ],
        vec![
            "info",
            "--output=json",
            "--image-opts",
            "driver=raw,offset=4k,size=65536,file.filename=c.raw",
        ],
        vec!["info", "--image-opts", part],
        vec!["info", "--output=json", "--image-opts", part],
        vec!["info", json],
        vec!["info", "--output=json", json],
        vec![
            "info",
            r#"json:{"file.driver":"raw","file.offset":4096,"file.file.filename":"c.raw"}"#,
        ],
        vec!["info", "--image-opts", "driver=file,filename=a.q"],
        vec![
            "info",
            "--output=json",
            "--image-opts",
            "driver=file,filename=a.q",
        ],
        vec![
            "map",
            "--image-opts",
            "driver=raw,offset=4096,size=65536,file.filename=c.raw",
        ],
        vec![
            "map",
            "--output=json",
            "--image-opts",
            "driver=raw,offset=4096,size=65536,file.filename=c.raw",
        ],
        vec!["map", "--output=json", json],
        vec!["map", json],
        vec!["check", json],
        vec!["check", "--image-opts", part],
        vec!["measure", "-O", "qcow2", json],
        vec![
            "compare",
            "--image-opts",
            part,
            "driver=qcow2,file.filename=a.q",
        ],
        vec!["compare", json, "a.q"],
        vec!["snapshot", "-l", json],
    ] {
        pair.same_reading(&arguments);
    }
}

#[test]
fn wrong_nodes_are_refused_in_the_same_words() {
    if !reference_is_there() {
        return;
    }
    let pair = prepared();
    for options in [
        "driver=raw,offset=9999999,file.filename=c.raw",
        "driver=raw,offset=4096,size=9999872,file.filename=c.raw",
        "driver=raw,size=100,file.filename=c.raw",
        "driver=raw,offset=x,file.filename=c.raw",
        "driver=raw,size=-1,file.filename=c.raw",
        "driver=raw,offset=100,filename=c.raw",
        "driver=qcow2,filename=a.q",
        "filename=a.q",
        "driver=qcow2,file.driver=qcow2,file.file.filename=a.q",
        "driver=foo,file.filename=a.q",
        "driver=qcow2",
        "driver=qcow2,foo=1,file.filename=a.q",
        "driver=qcow2,offset=1,file.filename=a.q",
        "driver=qcow2,file.foo=1,file.filename=a.q",
        "driver=raw,foo=1,file.filename=a.q",
        "driver=raw,file.filename=nope",
        "driver=qcow2,file=a.q",
        "driver=qcow2,file.locking=foo,file.filename=a.q",
        "driver=qcow2,force-share=foo,file.filename=a.q",
        "a.q",
    ] {
        let refused = pair.same_reading(&["info", "--image-opts", options]);
        assert_eq!(refused.status, Some(1));
    }
    for json in [
        "json:",
        "json:{",
        "json:[]",
        "json:{}",
        "json:{'driver':'nope','file':{}}",
    ] {
        pair.same_reading(&["info", json]);
    }
}

#[test]
fn a_part_of_a_file_is_all_that_is_written() {
    if !reference_is_there() {
        return;
    }
    let pair = prepared();
    let part =
        "driver=qcow2,file.driver=raw,file.offset=4096,file.size=393216,file.file.filename=c.raw";
    let before = fs::read(pair.ours().join("c.raw")).unwrap();
    // Copied out, it is the image that lies in it.
    let line = [
        "dd",
        "--image-opts",
        "if=driver=raw,offset=4096,file.filename=c.raw",
        "of=out",
        "bs=4096",
        "count=96",
    ];
    pair.same(&line);
    assert!(fs::read(pair.ours().join("out")).unwrap() == before[4096..4096 + 393_216]);
    // There is no room for another cluster, and what is behind the part is none of it.
    let refused = pair.run_ours(&["snapshot", "-c", "x", "--image-opts", part]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("No space left on device"),
        "{refused:?}"
    );
    let after = fs::read(pair.ours().join("c.raw")).unwrap();
    assert!(before[..4096] == after[..4096] && before[4096 + 393_216..] == after[4096 + 393_216..]);
    pair.same(&[
        "resize",
        "--image-opts",
        "driver=raw,size=512,file.filename=c.raw",
        "1M",
    ]);
    // With an offset alone it grows with the file.
    let growing = "driver=raw,offset=4096,file.filename=c.raw";
    pair.same(&["resize", "--image-opts", growing, "3M"]);
    for side in [pair.ours(), pair.theirs()] {
        assert_eq!(
            fs::metadata(side.join("c.raw")).unwrap().len(),
            (3 << 20) + 4096
        );
    }
}

#[test]
fn options_that_an_image_records_are_followed_only_on_demand() {
    if !reference_is_there() {
        return;
    }
    let pair = prepared();
    let name = r#"json:{"driver":"qcow2","file":{"driver":"raw","offset":4096,"file":{"driver":"file","filename":"c.raw"}}}"#;
    pair.same(&["create", "-f", "qcow2", "-b", name, "-F", "qcow2", "top"]);
    // Facts need no other file.
    for arguments in [
        vec!["info", "top"],
        vec!["info", "--output=json", "top"],
        vec!["check", "top"],
    ] {
        pair.same_reading(&arguments);
    }
    for arguments in [
        vec!["info", "--backing-chain", "top"],
        vec!["map", "top"],
        vec!["convert", "-O", "raw", "top", "out"],
        vec!["commit", "top"],
    ] {
        let refused = pair.run_ours(&arguments);
        assert_eq!(refused.status, Some(1), "{arguments:?}");
        assert!(
            refused.stderr.contains("--follow-json-names"),
            "{refused:?}"
        );
        assert!(!pair.ours().join("out").exists());
    }
    let followed = |arguments: &[&str]| {
        let mut line = vec!["--follow-json-names"];
        line.extend(arguments);
        let outcome = pair.run_ours(&line);
        assert_eq!(outcome.status, Some(0), "{outcome:?}");
        outcome.stdout
    };
    let reference = pair.run_theirs(&["map", "--output=json", "top"]).stdout;
    assert_eq!(followed(&["map", "--output=json", "top"]), reference);
    followed(&["convert", "-O", "raw", "top", "out"]);
    must(
        "convert",
        &pair.theirs(),
        &["qemu-img", "convert", "-O", "raw", "top", "out"],
    );
    assert!(
        fs::read(pair.ours().join("out")).unwrap() == fs::read(pair.theirs().join("out")).unwrap()
    );
}

#[test]
fn other_drivers_in_an_image_are_never_followed() {
    if !reference_is_there() {
        return;
    }
    let pair = prepared();
    for name in [
        r#"json:{"driver":"qcow2","file":{"driver":"nbd","path":"/run/x"}}"#,
        r#"json:{"driver":"null-co","size":1048576}"#,
        "nbd:localhost:10809",
    ] {
        pair.prepare(&[&["qemu-img", "rebase", "-u", "-b", name, "-F", "qcow2", "a.q"]]);
        let refused = pair.run_ours(&["--follow-json-names", "map", "a.q"]);
        assert_eq!(refused.status, Some(1), "{name}");
        assert!(
            refused.stderr.contains("Could not open backing file"),
            "{refused:?}"
        );
    }
}

/// `in.q`: a qcow2 image; `nest.q`: one whose disk begins with the qcow2 image of `a.q`.
fn nested() -> Pair {
    let pair = prepared();
    pair.prepare(&[
        &["qemu-img", "create", "-q", "-f", "qcow2", "in.q", "4M"],
        &[
            "qemu-io",
            "-c",
            "write -P 5 1M 64k",
            "-c",
            "write -P 6 3M 100k",
            "in.q",
        ],
        &["qemu-img", "create", "-q", "-f", "qcow2", "nest.q", "8M"],
        &[
            "qemu-img",
            "convert",
            "-n",
            "--image-opts",
            "--target-image-opts",
            "driver=raw,file.filename=a.q",
            "driver=raw,file.driver=qcow2,file.file.filename=nest.q",
        ],
    ]);
    pair
}

#[test]
fn an_image_takes_the_place_of_a_file() {
    if !reference_is_there() {
        return;
    }
    let pair = nested();
    let within = "driver=qcow2,file.driver=qcow2,file.file.filename=nest.q";
    let part = "driver=raw,offset=65536,file.driver=qcow2,file.file.filename=in.q";
    let parts = "driver=raw,size=64k,file.driver=raw,file.offset=1M,file.file.driver=qcow2,file.file.file.filename=in.q";
    let whole = "driver=raw,file.driver=qcow2,file.file.filename=in.q";
    let guessed = "file.driver=qcow2,file.file.filename=nest.q";
    for node in [within, part, parts, whole, guessed] {
        for verb in [
            &["info"][..],
            &["info", "--output=json"],
            &["map", "--output=json"],
            &["map"],
            &["measure", "-O", "qcow2"],
            &["check"],
            &["snapshot", "-l"],
        ] {
            pair.same_reading(&[verb, &["--image-opts", node]].concat());
        }
    }
    for node in [within, part, parts, whole, guessed] {
        pair.same(&["convert", "-O", "raw", "--image-opts", node, "copy"]);
        pair.same_image("copy", "raw");
    }
    pair.same(&[
        "compare",
        "--image-opts",
        within,
        "driver=qcow2,file.filename=a.q",
    ]);
}

#[test]
fn an_image_in_another_is_written() {
    if !reference_is_there() {
        return;
    }
    let pair = nested();
    let within = "driver=qcow2,file.driver=qcow2,file.file.filename=nest.q";
    let part = "driver=raw,offset=1M,file.driver=qcow2,file.file.filename=in.q";
    let start = "driver=raw,offset=1M,size=1M,file.driver=qcow2,file.file.filename=in.q";
    for line in [
        vec!["snapshot", "-q", "--image-opts", "-c", "s", within],
        vec![
            "bench",
            "-q",
            "-w",
            "-c",
            "20",
            "--pattern=9",
            "--image-opts",
            within,
        ],
        vec!["resize", "-q", "--image-opts", within, "3M"],
        vec!["bitmap", "--add", "--image-opts", within, "b"],
        vec!["resize", "-q", "--image-opts", part, "9M"],
    ] {
        let written = pair.run_ours(&line);
        assert_eq!(written.status, Some(0), "{line:?}: {written:?}");
    }
    let data = ["convert", "-n", "--target-image-opts", "c.raw", part];
    assert_eq!(pair.run_ours(&data).status, Some(0));
    for args in [
        &["check", "nest.q"][..],
        &["check", "in.q"],
        &["check", "--image-opts", within],
        &[
            "compare",
            "--image-opts",
            start,
            "driver=raw,size=1M,file.filename=c.raw",
        ],
    ] {
        let line = [&["qemu-img"], args].concat();
        must("the reference", &pair.ours(), &line);
    }
}

#[test]
fn the_padding_of_a_part_lies_where_the_file_goes_on() {
    if !reference_is_there() {
        return;
    }
    let pair = prepared();
    pair.prepare(&[&["truncate", "-s", "1000001", "odd.raw"]]);
    pair.same_reading(&[
        "map",
        "--output=json",
        "--image-opts",
        "driver=raw,offset=512k,file.filename=odd.raw",
    ]);
}
