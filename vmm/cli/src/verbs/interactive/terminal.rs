//! Commands that a person types: line editing, history, completion.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use bulkhead_process::warn;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Editor};

use super::complete::Completion;
use super::goes_on;
use super::session::Session;
use crate::output::print;

const WELCOME: &str = "Welcome to bulkhead, the interactive shell for virtual machines.\n\n\
    Type:  'help' for help with commands\n       'quit' to quit\n\n";

/// How many lines the history has.
const HISTORY: usize = 1000;

pub(super) fn run(mut session: Session) -> anyhow::Result<ExitCode> {
    const TERMINAL: &str = "cannot use this terminal";
    let config = Config::builder()
        .completion_type(CompletionType::List)
        .history_ignore_space(true)
        .max_history_size(HISTORY)
        .context(TERMINAL)?
        .build();
    let mut editor: Editor<Completion, FileHistory> =
        Editor::with_config(config).context(TERMINAL)?;
    editor.set_helper(Some(Completion));
    let history = history();
    if let Some(path) = &history {
        // There is none the first time.
        let _ = editor.load_history(path);
    }
    print(WELCOME.as_bytes())?;
    let prompt = match rustix::process::geteuid().is_root() {
        true => "bulkhead # ",
        false => "bulkhead > ",
    };
    loop {
        match editor.readline(prompt) {
            Ok(line) => {
                let _ = editor.add_history_entry(&line);
                if !goes_on(&mut session, &line) {
                    break;
                }
            }
            // Ctrl-C empties the line.
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error).context(TERMINAL),
        }
    }
    if let Some(path) = &history
        && let Err(error) = editor.save_history(path)
    {
        warn(&format!("the history is lost: {}: {error}", path.display()));
    }
    Ok(session.status())
}

/// The file with the history. `None`: there is no place for one.
fn history() -> Option<PathBuf> {
    let absolute = |path: PathBuf| Some(path).filter(|path| path.is_absolute());
    let named = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let usual = || Some(absolute(std::env::home_dir()?)?.join(".local/state"));
    let folder = named.and_then(absolute).or_else(usual)?.join("bulkhead");
    // If that fails, so does the writing of the history, which is reported.
    let _ = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder);
    Some(folder.join("history"))
}
