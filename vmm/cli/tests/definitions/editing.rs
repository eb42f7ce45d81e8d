//! `bulkhead edit`, and an editor for other texts.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::host::{Host, OWN, refusal};

/// An editor that runs `script` on the file.
fn editor(host: &Host, name: &str, script: &str) -> String {
    let path = host.folder().join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

fn edit(host: &Host, words: &[&str], editor: &str) -> std::process::Output {
    let mut command = host.bulkhead(words);
    command.env("EDITOR", editor).output().unwrap()
}

fn left(host: &Host) -> usize {
    let files = std::fs::read_dir(host.folder()).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("bulkhead-")).count()
}

#[test]
fn an_edited_definition_keeps_its_comments() {
    let host = Host::new();
    host.guest("g", "cpus = 1 # few\n");
    let editor = editor(&host, "more", "sed -i 's/cpus = 1/cpus = 4/' \"$1\"");

    let output = edit(&host, &["edit", "g"], &editor);

    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "Domain 'g' TOML configuration edited.\n\n",
        "{output:?}"
    );
    let text = host.read("g");
    assert!(
        text.starts_with("# ours\nname = \"g\" # its name\n"),
        "{text}"
    );
    assert!(text.ends_with("cpus = 4 # few\n"), "{text}");

    let output = edit(&host, &["edit", "g"], "true");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "Domain 'g' TOML configuration not changed.\n\n"
    );
    assert_eq!(left(&host), 0);
}

#[test]
fn an_edit_that_cannot_be_saved_changes_nothing() {
    let host = Host::new();
    host.guest("g", "cpus = 1\n");
    let before = host.read("g");
    let own = format!("cd / && {OWN} autostart g");
    for (script, says) in [
        (
            "sed -i 's/cpus/vcpus/' \"$1\"",
            "line 5, column 1: unknown key 'vcpus': did you mean 'cpus'?",
        ),
        (
            "sed -i 's/\"g\"/\"h\"/' \"$1\"",
            "the name cannot be changed here: 'bulkhead domrename g h'",
        ),
        (
            "sed -i 's/uuid = .*/uuid = \"00000000-0000-4000-8000-000000000000\"/' \"$1\"",
            "domain 'g' already exists with uuid",
        ),
        ("exit 3", "the editor '"),
        (": >\"$1\"", "line 1, column 1: the key 'name' is missing"),
    ] {
        let editor = editor(&host, "bad", script);
        let refused = refusal(&edit(&host, &["edit", "g"], &editor));
        assert!(refused.starts_with(says), "{refused}");
        assert_eq!(host.read("g"), before, "{script}");
    }
    let editor = editor(
        &host,
        "race",
        &format!("sed -i 's/cpus = 1/cpus = 2/' \"$1\"; {own}"),
    );
    let output = edit(&host, &["edit", "g"], &editor);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let lines = String::from_utf8_lossy(&output.stderr);
    assert!(lines.contains("was changed by another user"), "{lines}");
    assert!(host.read("g").ends_with("cpus = 1\nautostart = true\n"));
    assert_eq!(left(&host), 0);
}

#[test]
fn a_damaged_definition_is_mended_or_removed() {
    let host = Host::new();
    for name in ["g", "h"] {
        host.guest(name, "");
        let damaged = host.read(name).replace("kernel", "kernal");
        std::fs::write(host.file(name), damaged).unwrap();
    }
    let refused = host.refuses(&["domuuid", "g"]);
    assert!(
        refused
            .ends_with("/g.toml: line 4, column 1: unknown key 'kernal': did you mean 'kernel'?"),
        "{refused}"
    );

    let editor = editor(&host, "mend", "sed -i 's/kernal/kernel/' \"$1\"");
    let output = edit(&host, &["edit", "g"], &editor);
    assert!(output.status.success(), "{output:?}");
    assert!(host.read("g").starts_with("# ours\n"));
    host.prints(&["domuuid", "g"]);

    assert!(
        host.refuses(&["undefine", "h", "--remove-all-storage"])
            .contains("kernal")
    );
    host.prints(&["undefine", "h"]);
    assert!(!host.file("h").exists());
}

#[test]
fn on_a_terminal_the_user_may_try_again() {
    let host = Host::new();
    host.guest("g", "cpus = 1\n");
    let script = "n=$(cat count 2>/dev/null); echo x$n >count\n\
                  case $n in '') sed -i 's/^cpus = 1/vcpus = 1/' \"$1\";; *) sed -i 's/^vcpus = 1/cpus = 3/' \"$1\";; esac";
    let editor = editor(&host, "twice", script);
    // `script` gives the command a terminal.
    let line = format!("EDITOR={editor} {OWN} edit g");
    let mut command: Command = host.command(["script", "-qec", &line, "/dev/null"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"?\ny\n").unwrap();
    let output = child.wait_with_output().unwrap();

    let said = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    assert!(
        said.contains("error: line 5, column 1: unknown key 'vcpus'"),
        "{said}"
    );
    assert!(said.contains("Failed. Try again? [y,n,f,?]: "), "{said}");
    assert!(said.contains("y - yes, start editor again\n"), "{said}");
    assert!(
        said.contains("Domain 'g' TOML configuration edited.\n"),
        "{said}"
    );
    assert!(host.read("g").ends_with("cpus = 3\n"), "{}", host.read("g"));
}

#[test]
fn other_texts_are_edited_too() {
    let host = Host::new();
    host.guest("g", "");
    let editor = editor(&host, "text", "echo 'from an editor' >\"$1\"");
    for (words, says) in [
        (
            &["desc", "g", "--edit"][..],
            "Domain description updated successfully\n\n",
        ),
        (
            &["desc", "g", "--edit"],
            "Domain description not changed\n\n",
        ),
        (
            &["title", "g", "--edit"],
            "Domain title updated successfully\n\n",
        ),
        (&["metadata", "g", "u", "--edit"], "Metadata modified\n\n"),
        (
            &["metadata", "g", "u", "--edit"],
            "Metadata not changed\n\n",
        ),
    ] {
        let output = edit(&host, words, &editor);
        assert_eq!(String::from_utf8_lossy(&output.stdout), says, "{output:?}");
    }
    for verb in [&["desc", "g"][..], &["title", "g"], &["metadata", "g", "u"]] {
        assert_eq!(host.prints(verb), "from an editor\n\n");
    }
}
