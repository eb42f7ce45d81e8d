//! What the tool says on standard error: `image-tool: what is wrong`, or `qemu-img: …` when it was started under
//! that name, as scripts expect of it.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

use crate::output;

static PROGRAM: OnceLock<String> = OnceLock::new();

/// The name under which a script knows the tool it stands in for.
const STAND_IN: &str = "qemu-img";

/// The version of that tool whose commands these are.
const REFERENCE: &str = "10.0.0";

/// Remembers the name the program was started under.
pub(crate) fn set_program(arg0: Option<&OsStr>) {
    let name = arg0
        .and_then(|name| Path::new(name).file_name())
        .map(OsStr::to_string_lossy);
    let name = if name.as_deref() == Some(STAND_IN) {
        STAND_IN
    } else {
        "image-tool"
    };
    let _ = PROGRAM.set(name.to_owned());
}

/// The program's name, for messages.
pub(crate) fn program() -> &'static str {
    PROGRAM.get().map_or("image-tool", String::as_str)
}

/// What `--version` prints: under the other name first the version that scripts ask it for.
pub(crate) fn version() -> String {
    let own = env!("CARGO_PKG_VERSION");
    match program() {
        STAND_IN => format!("{STAND_IN} version {REFERENCE} (image-tool {own})"),
        name => format!("{name} version {own} (qemu-img {REFERENCE} compatible)"),
    }
}

/// One error line.
pub(crate) fn error(message: impl fmt::Display) {
    output::notice(format_args!("{}: {message}", program()));
}

/// One warning line.
pub(crate) fn warning(message: impl fmt::Display) {
    output::notice(format_args!("{}: warning: {message}", program()));
}

/// An error with the lines that follow it, unprefixed.
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

/// A command line that cannot be understood: the error, then where to look.
#[derive(Debug)]
pub(crate) struct Usage {
    /// The verb, when the error is in its options.
    pub(crate) verb: Option<&'static str>,
    pub(crate) message: String,
    /// Whether getopt itself found it: then the message begins with the verb too.
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

/// Prints whatever a verb ended with.
pub(crate) fn failure(failure: &anyhow::Error) {
    match failure.downcast_ref::<Usage>() {
        Some(usage) => output::notice(usage),
        None if failure.to_string().is_empty() => {}
        None => error(format_args!("{failure:#}")),
    }
}
