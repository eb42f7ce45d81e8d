//! What can be done about encryption without encrypting: an empty image of the old kind, the length of a LUKS header,
//! refusals.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod pair;

use std::fs;

use pair::{Pair, must, reference_is_there};

const SECRET: &str = "secret,id=key,data=abc";

#[test]
fn an_empty_aes_image_is_the_one_qemu_makes_and_works_there() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    for (name, options) in [
        ("old", "encryption=on,encrypt.key-secret=key"),
        ("new", "encrypt.format=aes,encrypt.key-secret=key"),
        (
            "v2",
            "encrypt.format=aes,encrypt.key-secret=key,compat=0.10",
        ),
        (
            "overlay",
            "encrypt.format=aes,encrypt.key-secret=key,backing_file=below,backing_fmt=raw",
        ),
    ] {
        pair.same(&[
            "create", "-u", "--object", SECRET, "-f", "qcow2", "-o", options, name, "1M",
        ]);
        assert!(
            fs::read(pair.ours().join(name)).unwrap()
                == fs::read(pair.theirs().join(name)).unwrap(),
            "{name}"
        );
        pair.same_reading(&["info", name]);
    }
    let image = "driver=qcow2,file.filename=new,encrypt.key-secret=key";
    for command in ["write -P 7 512 100k", "read -P 7 512 100k"] {
        let said = must(
            "qemu-io",
            &pair.ours(),
            &[
                "qemu-io",
                "--object",
                SECRET,
                "--image-opts",
                image,
                "-c",
                command,
            ],
        );
        assert!(!said.contains("failed"), "{said}");
    }
    assert_eq!(pair.run_ours(&["map", "new"]).status, Some(1));
}

#[test]
fn a_key_that_is_not_there_is_told_alike() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    for (object, options) in [
        (SECRET, "encryption=on"),
        (SECRET, "encryption=on,encrypt.key-secret=other"),
        (
            SECRET,
            "encryption=on,encrypt.format=aes,encrypt.key-secret=key",
        ),
        (SECRET, "encrypt.format=rot13,encrypt.key-secret=key"),
        (SECRET, "encrypt.key-secret=key"),
        (SECRET, "encryption=off,encrypt.key-secret=key"),
        (
            SECRET,
            "encrypt.format=aes,encrypt.key-secret=key,encrypt.cipher-alg=aes-128",
        ),
        ("secret,id=key", "encrypt.format=aes,encrypt.key-secret=key"),
    ] {
        let refused = pair.same(&[
            "create", "--object", object, "-f", "qcow2", "-o", options, "image", "1M",
        ]);
        assert_eq!(refused.status, Some(1), "{options}");
        assert!(!pair.ours().join("image").exists(), "{options}");
    }
}

#[test]
fn a_secret_is_defined_or_refused_alike() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::prepared(&["qemu-img create -q -f qcow2 image 1M"]);
    for definition in [
        "secret,id=key,data=a",
        "secret,id=key,data=",
        "secret,id=key,data=a,,b",
        "secret,id=key,data=a,format=raw",
        "secret,id=key,data=YQ==,format=base64",
        "data=a,id=key,qom-type=secret",
        "{\"qom-type\":\"secret\",\"id\":\"key\",\"data\":\"a\"}",
        "{'qom-type':'secret','id':'key','data':'a'}",
        "",
        "secret",
        "secret,id=key",
        "secret,id=",
        "secret,id=1key,data=a",
        "secret,id=key,data",
        "secret,data=a,other,id=key",
        "secret,id=key,data=a,other=b",
        "secret,id=key,data=a,format=other",
        "secret,id=key,data=a,file=b",
        "secret,id=key,data=a,keyid=other",
        "secret_keyring,id=key",
        "other,id=key",
        "{",
        "{\"qom-type\":1}",
        "{\"qom-type\":\"secret\",\"id\":\"key\",\"data\":1}",
        "{\"qom-type\":\"secret\",\"id\":\"key\",\"data\":\"a\",\"other\":1}",
    ] {
        pair.same(&["check", "--object", definition, "image"]);
    }
    pair.same(&["check", "--object", SECRET, "--object", SECRET, "image"]);
}

#[test]
fn what_would_have_to_be_encrypted_is_refused_by_name() {
    let pair = Pair::new();
    fs::write(pair.ours().join("raw"), [1; 4096]).unwrap();
    let luks = "encrypt.format=luks,encrypt.key-secret=key";
    let aes = "encrypt.format=aes,encrypt.key-secret=key";
    let full = format!("{aes},preallocation=metadata");
    for args in [
        &["create", "-f", "qcow2", "-o", luks, "image", "1M"][..],
        &["create", "-f", "qcow2", "-o", &full, "image", "1M"],
        &[
            "convert", "-f", "raw", "-O", "qcow2", "-o", luks, "raw", "image",
        ],
        &[
            "convert", "-f", "raw", "-O", "qcow2", "-o", aes, "raw", "image",
        ],
    ] {
        let args = [&args[..1], &["--object", SECRET], &args[1..]].concat();
        let refused = pair.run_ours(&args);
        assert_eq!(refused.status, Some(1), "{args:?}");
        assert!(
            refused.stderr.to_lowercase().contains("encrypted image"),
            "{args:?}: {}",
            refused.stderr
        );
        assert!(!pair.ours().join("image").exists(), "{args:?}");
    }
}

#[test]
fn a_luks_header_is_measured() {
    if !reference_is_there() {
        return;
    }
    let pair = Pair::new();
    // The reference tries for seconds how fast the machine is for each header that it measures: one will do.
    let luks = "encrypt.format=luks,encrypt.iter-time=10";
    let measure = |options: &str| {
        let options = format!("{luks},{options}");
        let args = [
            "measure", "--object", SECRET, "-O", "qcow2", "--size", "1G", "-o",
        ];
        [&args[..], &[&options]].concat().join(" ")
    };
    for more in [
        "encrypt.key-secret=key",
        "encrypt.key-secret=key,encrypt.cipher-alg=rot13",
        "encrypt.key-secret=other,encrypt.cipher-mode=rot13",
        "encrypt.key-secret=other",
        "size=1G",
    ] {
        pair.same_reading(&measure(more).split(' ').collect::<Vec<_>>());
    }
    for (more, required) in [
        ("encrypt.cipher-alg=aes-128", 1_507_328),
        (
            "encrypt.cipher-alg=serpent-256,encrypt.cipher-mode=cbc",
            1_507_328,
        ),
        ("cluster_size=512", 23_453_696),
        ("preallocation=full", 1_076_232_192),
    ] {
        let line = measure(&format!("encrypt.key-secret=key,{more}"));
        let measured = pair.run_ours(&line.split(' ').collect::<Vec<_>>());
        assert!(
            measured
                .stdout
                .starts_with(&format!("required size: {required}\n")),
            "{more}: {measured:?}"
        );
    }
    pair.same_reading(&[
        "measure",
        "-O",
        "qcow2",
        "-o",
        "encryption=on",
        "--size",
        "1G",
    ]);
}
