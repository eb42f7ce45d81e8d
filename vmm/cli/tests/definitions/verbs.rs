//! What the verbs print and change, in virsh's words.

use crate::host::{Host, refusal};

#[test]
fn a_guest_is_defined_printed_renamed_and_undefined() {
    let host = Host::new();
    let text = "# a web server\nname = \"web\"\nkernel = \"/k\" # Debian's\n\n[[nets]]\nnetwork = \"default\"\n";
    std::fs::write(host.folder().join("web.toml"), text).unwrap();

    assert_eq!(
        host.prints(&["define", "web.toml"]),
        "Domain 'web' defined from web.toml\n\n"
    );
    let dump = host.prints(&["dumptoml", "web"]);
    assert_eq!(dump, host.read("web") + "\n");
    // The comments stay; a UUID and an address are in it.
    assert!(
        dump.starts_with("# a web server\nname = \"web\"\nuuid = \""),
        "{dump}"
    );
    assert!(dump.contains("kernel = \"/k\" # Debian's\n"), "{dump}");
    assert!(
        dump.contains("network = \"default\"\nmac = \"52:54:00:"),
        "{dump}"
    );

    let uuid = host.prints(&["domuuid", "web"]);
    assert_eq!(uuid.len(), 38, "{uuid}");
    let uuid = uuid.trim();
    assert_eq!(host.prints(&["domname", uuid]), "web\n\n");
    assert_eq!(
        host.prints(&["domrename", "web", "www"]),
        "Domain successfully renamed\n\n"
    );
    assert_eq!(host.prints(&["domuuid", "www"]).trim(), uuid);
    host.prints(&["domrename", "--domain", "www", "--new-name", "x"]);
    host.prints(&["domrename", "x", "www"]);
    assert!(!host.file("web").exists());
    assert_eq!(
        host.prints(&["undefine", "--domain", uuid]),
        "Domain 'www' has been undefined\n\n"
    );
    assert!(
        host.refuses(&["domuuid", "www"])
            .starts_with("failed to get domain 'www'")
    );
}

#[test]
fn json_is_printed_by_every_verb_that_prints() {
    let host = Host::new();
    host.guest(
        "g",
        "memory = 1073741824\ntitle = \"T\"\n[metadata]\n\"x:y\" = \"<a/>\"\n",
    );
    let json = |words: &[&str]| -> serde_json::Value {
        let words = [words, &["-o", "json"]].concat();
        serde_json::from_str(&host.prints(&words)).unwrap()
    };
    let dump = json(&["dumptoml", "g"]);
    assert_eq!(dump["memory"], "1G");
    assert_eq!(dump["on_reboot"], "restart");
    assert_eq!(json(&["domuuid", "g"]), dump["uuid"]);
    assert_eq!(json(&["domname", "g"]), "g");
    assert_eq!(json(&["desc", "g"]), serde_json::Value::Null);
    assert_eq!(json(&["title", "g"]), "T");
    assert_eq!(json(&["metadata", "g", "x:y"]), "<a/>");
}

#[test]
fn what_cannot_be_defined_is_refused_with_its_place() {
    let host = Host::new();
    for (text, says) in [
        (
            "name = 'g'\nkernel = '/k'\nmemry = '1G'\n",
            "line 3, column 1: unknown key 'memry': did you mean 'memory'?",
        ),
        (
            "name = 'g'\nkernel = 'k'\n",
            "line 2, column 10: kernel: 'k' is not an absolute path",
        ),
        (
            "name = 'g'\n",
            "line 1, column 1: the key 'kernel' is missing",
        ),
        ("name = \u{1}", "line 1, column 8: "),
    ] {
        let refused = refusal(&host.define(text));
        let says = format!("Failed to define domain from -: {says}");
        assert!(refused.starts_with(&says), "{refused}");
    }
    assert_eq!(
        host.refuses(&["define", "nofile"]),
        "Failed to open file 'nofile': No such file or directory (os error 2)"
    );
    assert!(
        host.refuses(&["define", "/etc"])
            .starts_with("cannot read '/etc': ")
    );
    let large = refusal(&host.define(&"#".repeat(2 << 20)));
    assert_eq!(
        large,
        "standard input is larger than a definition can be, 256 KiB"
    );
    assert!(!host.file("g").exists());
}

#[test]
fn a_guest_is_marked_as_autostarted() {
    let host = Host::new();
    host.guest("g", "autostart = false # not yet\n");
    assert_eq!(
        host.prints(&["autostart", "g"]),
        "Domain 'g' marked as autostarted\n\n"
    );
    assert!(host.read("g").ends_with("autostart = true # not yet\n"));
    assert_eq!(
        host.prints(&["autostart", "g", "--disable"]),
        "Domain 'g' unmarked as autostarted\n\n"
    );
    assert!(host.read("g").ends_with("autostart = false # not yet\n"));
    assert_eq!(host.prints(&["--quiet", "autostart", "g"]), "");
}

#[test]
fn texts_about_a_guest_are_set_printed_and_removed() {
    let host = Host::new();
    host.guest("g", "");
    for (words, says) in [
        (&["desc", "g"][..], "No description for domain: g\n\n"),
        (
            &["desc", "g", "two", "words"],
            "Domain description updated successfully\n\n",
        ),
        (&["desc", "g"], "two words\n\n"),
        (&["desc", "g", "--config"], "two words\n\n"),
        (&["desc", "g", "--title"], "No title for domain: g\n\n"),
        (
            &["desc", "g", "--title", "T"],
            "Domain title updated successfully\n\n",
        ),
        (&["title", "g"], "T\n\n"),
        (
            &["title", "g", "U"],
            "Domain title updated successfully\n\n",
        ),
        (&["desc", "g", "--title", "--current"], "U\n\n"),
        (
            &["desc", "g", ""],
            "Domain description updated successfully\n\n",
        ),
        (&["desc", "g"], "No description for domain: g\n\n"),
        (
            &[
                "metadata",
                "g",
                "http://x/",
                "--set",
                "<a>\"'</a>",
                "--key",
                "a",
            ],
            "Metadata modified\n\n",
        ),
        (
            &["metadata", "--domain", "g", "--uri", "http://x/"],
            "<a>\"'</a>\n\n",
        ),
        (
            &["metadata", "g", "http://x/", "--remove"],
            "Metadata removed\n\n",
        ),
    ] {
        assert_eq!(host.prints(words), says, "{words:?}");
    }
    for (words, says) in [
        (
            &["metadata", "g", "http://x/"][..],
            "metadata not found: Requested metadata element is not present",
        ),
        (
            &["desc", "g", "--title", "a\nb"],
            "Domain title can't contain newlines",
        ),
        (
            &["desc", "g", "--live", "x"],
            "Requested operation is not valid: domain is not running",
        ),
    ] {
        assert_eq!(host.refuses(words), says, "{words:?}");
    }
    let both = host
        .bulkhead(&["desc", "g", "--live", "--current", "x"])
        .output()
        .unwrap();
    assert_eq!(both.status.code(), Some(2), "{both:?}");
}

#[test]
fn a_guest_is_undefined_with_its_images_if_that_is_wanted() {
    let host = Host::new();
    let disk = |name: &str| {
        let path = host.folder().join(name);
        std::fs::write(&path, "").unwrap();
        format!(
            "[[disks]]\npath = \"{}\"\nformat = \"raw\"\n",
            path.display()
        )
    };
    let disks = disk("a") + &disk("b") + &disk("c");
    let there = || ["a", "b", "c"].map(|name| host.folder().join(name).exists());
    let third = host.folder().join("c").display().to_string();

    host.guest("g", &disks);
    let wrong = host
        .bulkhead(&["undefine", "g", "--storage", "vdx"])
        .output()
        .unwrap();
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert!(host.file("g").exists());
    host.prints(&["undefine", "g", "--nvram", "--snapshots-metadata"]);
    assert_eq!(there(), [true; 3]);

    host.guest("g", &disks);
    let says = host.prints(&["undefine", "g", "--storage", &format!("vda,{third}")]);
    assert!(says.contains("Volume 'vda'("), "{says}");
    assert!(
        says.contains(&format!("Volume 'vdc'({third}) removed.\n")),
        "{says}"
    );
    assert_eq!(there(), [false, true, false]);

    host.guest("g", &disks);
    let says = host.refuses(&["undefine", "g", "--remove-all-storage"]);
    assert!(
        says.starts_with("Failed to remove storage volume 'vda'("),
        "{says}"
    );
    assert_eq!(there(), [false; 3]);
    assert!(!host.file("g").exists());
}

#[test]
fn the_schema_is_that_of_a_definition() {
    let host = Host::new();
    let schema: serde_json::Value = serde_json::from_str(&host.prints(&["schema"])).unwrap();
    assert_eq!(schema["title"], "Definition");
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["required"], serde_json::json!(["name", "kernel"]));
    host.guest(
        "g",
        "title = \"T\"\n[[disks]]\npath = \"/d\"\nformat = \"raw\"\n",
    );
    let dump: serde_json::Value =
        serde_json::from_str(&host.prints(&["dumptoml", "g", "-o", "json"])).unwrap();
    for key in dump.as_object().unwrap().keys() {
        let property = &schema["properties"][key];
        // Editors show it.
        let described = property["description"].as_str().unwrap_or_default();
        assert!(!described.is_empty(), "{key}: {property}");
    }
}
