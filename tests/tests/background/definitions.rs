//! The verbs on definitions, of guests that run.

use crate::host::Host;
use crate::on_host;

/// The value of a key in what `dumptoml` prints.
fn dumped(host: &Host, words: &[&str], key: &str) -> Option<String> {
    let dump = host.ok(&[&["dumptoml"], words].concat());
    let begin = format!("{key} = ");
    let mut lines = dump.lines();
    lines.find_map(|line| Some(line.strip_prefix(&begin)?.to_owned()))
}

#[test]
fn a_text_is_changed_where_the_options_say() {
    on_host(
        "definitions::a_text_is_changed_where_the_options_say",
        |host| {
            host.define("g", "echo", "title = \"old\" # ours");
            host.ok(&["start", "g"]);
            let title = |words: &[&str]| host.ok(&[&["-q", "title", "g"], words].concat());

            title(&["live"]);
            assert_eq!(title(&[]), "live\n");
            assert_eq!(title(&["--config"]), "old\n");
            title(&["--config", "next"]);
            assert_eq!(title(&["--live"]), "live\n");
            assert_eq!(title(&["--config"]), "next\n");
            title(&["--live", "--config", "both"]);
            assert_eq!(dumped(host, &["g"], "title").unwrap(), "\"both\"");
            assert_eq!(
                dumped(host, &["g", "--inactive"], "title").unwrap(),
                "\"both\" # ours"
            );
            host.ok(&["metadata", "g", "u:v", "--set", "text"]);
            assert_eq!(host.ok(&["-q", "metadata", "g", "u:v"]), "text\n");
            host.ok(&["desc", "g", "--live", "of this run"]);
            assert_eq!(host.state("g")["definition"]["description"], "of this run");

            host.ok(&["destroy", "g"]);
            assert_eq!(title(&["--current"]), "both\n");
            assert!(
                host.refused(&["metadata", "g", "u:v"])
                    .contains("metadata not found")
            );
            host.ok(&["undefine", "g"]);
        },
    );
}

#[test]
fn a_definition_goes_and_its_guest_stays() {
    on_host(
        "definitions::a_definition_goes_and_its_guest_stays",
        |host| {
            host.define("g", "echo", "");
            host.ok(&["start", "g"]);
            let uuid = host.ok(&["domuuid", "1"]);
            assert_eq!(host.ok(&["domname", "1"]), "g\n\n");
            assert!(
                host.refused(&["domrename", "g", "h"])
                    .contains("cannot rename active domain")
            );
            assert!(
                host.refused(&["undefine", "g", "--remove-all-storage"])
                    .contains("only on stopped domains")
            );

            assert_eq!(
                host.ok(&["undefine", "g"]),
                "Domain 'g' has been undefined\n\n"
            );

            assert_eq!(host.running(), ["g"]);
            for (words, says) in [
                (
                    &["autostart", "g"][..],
                    "cannot set autostart for transient domain",
                ),
                (
                    &["title", "g", "--config", "t"],
                    "transient domains do not have any persistent config",
                ),
                (&["edit", "g"], "domain 'g' is transient"),
                (&["dumptoml", "g", "--inactive"], "domain 'g' is transient"),
            ] {
                let refused = host.refused(words);
                assert!(refused.contains(says), "{refused}");
            }
            // It is defined again by what it runs with, and is the same guest.
            std::fs::write("/run/g.toml", host.ok(&["dumptoml", "g"])).unwrap();
            host.ok(&["define", "/run/g.toml"]);
            assert_eq!(host.ok(&["domuuid", "g"]), uuid);
            assert_eq!(
                dumped(host, &["g", "--inactive"], "uuid").unwrap(),
                format!("\"{}\"", uuid.trim())
            );
            host.ok(&["destroy", "g"]);
            assert_eq!(host.ok(&["domuuid", "g"]), uuid);
            host.ok(&["undefine", "g"]);
        },
    );
}

#[test]
fn a_guest_is_not_started_as_another_one() {
    on_host(
        "definitions::a_guest_is_not_started_as_another_one",
        |host| {
            host.define(
                "g",
                "echo",
                "uuid = \"00000000-0000-4000-8000-000000000001\"",
            );
            host.define(
                "copy",
                "echo",
                "uuid = \"00000000-0000-4000-8000-000000000001\"",
            );
            assert!(
                host.refused(&["start", "copy"])
                    .contains("domain 'g' is already defined with uuid 0000")
            );
            let net = "[[nets]]\nnetwork = \"default\"\nmac = \"52:54:00:00:00:01\"";
            host.define("g", "echo", net);
            host.define("copy", "echo", net);
            assert!(
                host.refused(&["start", "copy"])
                    .contains("domain 'g' already has the MAC address 52:54:00:00:00:01")
            );
            assert!(host.running().is_empty());
        },
    );
}
