//! The interactive shell, on a terminal and without one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on has failed

mod terminal;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use terminal::Terminal;

fn bulkhead(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    command
        .current_dir(folder)
        .env("HOME", folder)
        .env("XDG_STATE_HOME", folder.join("state"))
        .env("XDG_RUNTIME_DIR", folder)
        .env("TERM", "xterm");
    command
}

/// A shell on a terminal, with its prompt.
fn shell(folder: &Path) -> Terminal {
    let mut terminal = Terminal::start(bulkhead(folder));
    terminal.expect("Type:  'help' for help with commands");
    terminal.expect(prompt());
    terminal
}

fn prompt() -> &'static str {
    match rustix::process::geteuid().is_root() {
        true => "bulkhead # ",
        false => "bulkhead > ",
    }
}

fn stdout(output: &Output) -> &str {
    str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn a_person_types_commands_and_an_error_does_not_end_the_shell() {
    let folder = tempfile::tempdir().unwrap();
    let mut shell = shell(folder.path());

    shell.type_line("echo 'one  word' \"it's\"; echo two\\ words");
    shell.expect("\none  word it's");
    shell.expect("\ntwo words");
    shell.type_line("nodinfo");
    shell.expect("error: unknown command: 'nodinfo': did you mean 'nodeinfo'?");
    shell.type_line("echo \"unfinished");
    shell.expect("error: missing \"");
    shell.type_line("nodeinfo --nonsense");
    shell.expect("error: unexpected argument '--nonsense' found");
    shell.type_line("-q");
    shell.expect("error: which command?");
    shell.type_line("cd /nonexistent");
    shell.expect("error: cd: /nonexistent: No such file or directory");
    shell.type_line("cd /usr; pwd");
    shell.expect("\n/usr");
    shell.type_line("cd; echo at home; pwd");
    shell.expect("\nat home");
    shell.expect(&format!("\n{}", folder.path().display()));
    shell.type_line("quit; echo not reached");
    let (status, rest) = shell.end();

    assert_eq!(status, Some(0), "{rest}");
    assert!(!rest.contains("\nnot reached"), "{rest}");
}

#[test]
fn its_status_is_that_of_the_last_command() {
    let folder = tempfile::tempdir().unwrap();
    for (lines, end, expected) in [
        (&["nonsense"][..], "quit", 2),
        (&["nonsense", "echo fine"], "exit", 0),
        (&["cd /nonexistent"], "quit", 1),
        (&[], "quit", 0),
    ] {
        let mut shell = shell(folder.path());
        for line in lines {
            shell.type_line(line);
            shell.expect(prompt());
        }
        shell.type_line(end);
        let (status, rest) = shell.end();
        assert_eq!(status, Some(expected), "{lines:?}: {rest}");
    }
}

#[test]
fn keys_do_what_they_do_in_a_shell() {
    const CTRL_C: &str = "\x03";
    const CTRL_D: &str = "\x04";
    const UP: &str = "\x1b[A";
    let folder = tempfile::tempdir().unwrap();
    let mut first = shell(folder.path());
    first.type_keys("hostn\t");
    first.expect("hostname ");
    first.type_keys(CTRL_C);
    first.expect(prompt());
    first.type_keys("nodeinfo --outp\tj\t\r");
    first.expect("\"cpu_model\":");
    first.expect(prompt());
    first.type_line("echo kept");
    first.expect("\nkept");
    first.expect(prompt());
    first.type_line(" echo hidden");
    first.expect("\nhidden");
    first.expect(prompt());
    first.type_keys(CTRL_D);
    assert_eq!(first.end().0, Some(0));

    // The history is the user's alone, and the next shell has it; lines that begin with a space are not in it.
    let history = folder.path().join("state/bulkhead/history");
    let mode = std::fs::metadata(&history).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read_to_string(&history).unwrap();
    assert!(text.ends_with("\necho kept\n"), "{text}");
    let mut second = shell(folder.path());
    second.type_keys(UP);
    second.expect("echo kept");
    second.type_keys("\r");
    second.expect("\nkept");
    second.expect(prompt());
    second.type_keys(CTRL_D);
    assert_eq!(second.end().0, Some(0));
}

#[test]
fn ctrl_c_ends_the_command_and_not_the_shell() {
    let folder = tempfile::tempdir().unwrap();
    let mut shell = shell(folder.path());
    // This reads the terminal until there is a whole definition.
    shell.type_line("define /dev/stdin; echo afterwards");
    shell.wait_for_child();
    shell.type_keys("\x03");
    shell.expect("\nafterwards");
    shell.type_line("quit");
    assert_eq!(shell.end().0, Some(0));
}

#[test]
fn without_a_place_for_the_history_there_is_a_warning_and_a_shell() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("state"), "a file").unwrap();
    let mut shell = shell(folder.path());
    shell.type_line("echo works; quit");
    shell.expect("\nworks");
    shell.expect("warning: the history is lost: ");
    assert_eq!(shell.end().0, Some(0));
}

#[test]
fn one_argument_can_be_several_commands() {
    let folder = tempfile::tempdir().unwrap();
    let run = |line: &str| bulkhead(folder.path()).arg(line).output().unwrap();

    let all = run("echo first; nonsense; echo last");
    assert_eq!(stdout(&all), "first\nlast\n");
    assert!(stderr(&all).starts_with("error: unknown command: 'nonsense'"));
    assert_eq!(all.status.code(), Some(0));

    assert_eq!(run("echo first; nonsense").status.code(), Some(2));
    let quoted = run("echo 'a; b' # c\npwd");
    assert_eq!(
        stdout(&quoted),
        format!("a; b\n{}\n\n", folder.path().display())
    );
    let unfinished = run("echo 'a");
    assert_eq!(
        (unfinished.status.code(), stderr(&unfinished)),
        (Some(1), "error: missing '\n")
    );
    // As virsh has it: the next command would be somewhere else than the shell around it.
    let moved = run("cd /usr");
    assert_eq!(moved.status.code(), Some(1));
    assert_eq!(
        stderr(&moved),
        "error: cd: command valid only in interactive mode\n"
    );
    assert_eq!(stdout(&run("quit; echo no")), "");
}

#[test]
fn options_before_several_commands_are_for_each_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let output = bulkhead(folder.path())
        .args(["-o", "json", "pwd; hostname"])
        .output()
        .unwrap();
    let folder = serde_json::to_string(folder.path()).unwrap();
    assert!(
        stdout(&output).starts_with(&format!("{folder}\n{{\n  \"hostname\":")),
        "{output:?}"
    );
}

/// `bulkhead` alone, with this standard input, which is no terminal.
fn fed(folder: &Path, input: &str) -> Output {
    let mut command = bulkhead(folder);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn commands_can_come_from_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let output = fed(folder.path(), "cd /usr\npwd\n\n# nothing\necho last");
    assert_eq!(stdout(&output), "/usr\n\nlast\n");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(fed(folder.path(), "nonsense\n").status.code(), Some(2));
}

#[test]
fn without_a_command_the_list_of_commands_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    for input in ["", "\n"] {
        let output = fed(folder.path(), input);
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(stdout(&output), "");
        assert!(stderr(&output).starts_with("Grouped commands:\n\n Domain Management"));
    }
}

#[test]
fn words_are_quoted_for_a_shell_if_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = bulkhead(folder.path());
    let output = command
        .args(["echo", "--shell", "--str", "it's", "a b", "plain"])
        .output()
        .unwrap();
    assert_eq!(stdout(&output), "'it'\\''s' 'a b' plain\n");
}
