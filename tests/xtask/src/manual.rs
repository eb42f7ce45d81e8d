//! `cargo xtask manual`: the manual's pages and the shells' completions, which a package installs. `bulkhead` makes
//! both of the definitions of its command line.

use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::project::Project;
use crate::run;

/// Where each shell looks for the completion of `bulkhead`, below /usr/share.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/bulkhead"),
    ("zsh", "zsh/vendor-completions/_bulkhead"),
    ("fish", "fish/vendor_completions.d/bulkhead.fish"),
];

pub(crate) fn run(project: &Project) -> Result<ExitCode> {
    run::through(&mut run::cargo(
        project,
        &["build", "--quiet", "--release", "--package", "bulkhead"],
    ))?;
    let share = project.target.join("manual/share");
    write(&project.program("bulkhead"), &share)?;
    println!("{}", share.display());
    Ok(ExitCode::SUCCESS)
}

/// Writes what belongs into /usr/share into this folder.
fn write(bulkhead: &Path, share: &Path) -> Result<()> {
    let make = |folder: &Path| {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())
    };
    let pages = share.join("man/man1");
    make(&pages)?;
    run::through(Command::new(bulkhead).arg("manual").arg(&pages))?;
    for (shell, path) in COMPLETIONS {
        let path = share.join(path);
        path.parent().map(make).transpose()?;
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        let mut command = Command::new(bulkhead);
        run::through(command.args(["completion", shell]).stdout(file))?;
    }
    Ok(())
}
