//! Messages on standard error: `image-tool: MESSAGE`, or `qemu-img: MESSAGE` if the tool was started under that name,
//! since scripts match it.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

use crate::output;

static PROGRAM: OnceLock<String> = OnceLock::new();

/// The name of the tool that it can replace.
const QEMU_IMG: &str = "qemu-img";

/// The version of qemu-img whose command line is implemented.
const REFERENCE: &str = "10.0.0";

/// Remembers the name the program was started under.
pub(crate) fn set_program(arg0: Option<&OsStr>) {
    let name = arg0
        .and_then(|name| Path::new(name).file_name())
        .map(OsStr::to_string_lossy);
    let name = if name.as_deref() == Some(QEMU_IMG) {
        QEMU_IMG
    } else {
        "image-tool"
    };
    let _ = PROGRAM.set(name.to_owned());
}

/// The program's name, for messages.
pub(crate) fn program() -> &'static str {
    PROGRAM.get().map_or("image-tool", String::as_str)
}

/// What `--version` prints: started as qemu-img, the version of qemu-img that scripts check comes first.
pub(crate) fn version() -> String {
    let own = env!("CARGO_PKG_VERSION");
    match program() {
        QEMU_IMG => format!("{QEMU_IMG} version {REFERENCE} (image-tool {own})"),
        name => format!("{name} version {own} (qemu-img {REFERENCE} compatible)"),
    }
}

/// Prints an error.
pub(crate) fn error(message: impl fmt::Display) {
    output::notice(format_args!("{}: {message}", program()));
}

/// Prints a warning.
pub(crate) fn warning(message: impl fmt::Display) {
    output::notice(format_args!("{}: warning: {message}", program()));
}

/// An error, and lines after it that have no prefix.
#[derive(Debug)]
pub(crate) struct Hinted {
    pub(crate) message: String,
    pub(crate) hint: String,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.message, self.hint)
    }
}

impl std::error::Error for Hinted {}

/// An invalid command line: the error, and a reference to `--help`.
#[derive(Debug)]
pub(crate) struct Usage {
    /// The verb, if the error is in its options.
    pub(crate) verb: Option<&'static str>,
    pub(crate) message: String,
    /// Whether the error is getopt's: then the message begins with the verb, too.
    pub(crate) from_getopt: bool,
}

impl Usage {
    /// An error that a verb found in its arguments.
    pub(crate) fn of(verb: &'static str, message: impl Into<String>) -> anyhow::Error {
        Self {
            verb: Some(verb),
            message: message.into(),
            from_getopt: false,
        }
        .into()
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = self.verb.map(|verb| format!(" {verb}")).unwrap_or_default();
        let verb_in_prefix = if self.from_getopt { verb.as_str() } else { "" };
        writeln!(f, "{}{verb_in_prefix}: {}", program(), self.message)?;
        write!(f, "Try '{}{verb} --help' for more info", program())
    }
}

impl std::error::Error for Usage {}

/// Prints the error that a verb returned.
pub(crate) fn failure(failure: &anyhow::Error) {
    match failure.downcast_ref::<Usage>() {
        Some(usage) => output::notice(usage),
        None if failure.to_string().is_empty() => {}
        None => error(format_args!("{failure:#}")),
    }
}
